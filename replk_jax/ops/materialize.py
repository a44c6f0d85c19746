"""Forces XLA to compute a value once and store it."""

from functools import partial

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialize(x: jax.Array) -> jax.Array:
    """The identity, but XLA computes x, and in the backward pass its gradient, only once.

    XLA for CPUs fuses an elementwise operation into every operation that reads its result. It then
    recomputes the sum along a residual path from its beginning for each reader, and the sum of the
    gradients likewise, so the time grows with the square of the depth. An
    `jax.lax.optimization_barrier` does not help: XLA removes it before fusion. A call that must
    not be inlined does. On other platforms, this operation has no effect.
    """
    return materialize_p.bind(x)


materialize_p = Primitive("materialize")
materialize_p.def_impl(lambda x: x)
materialize_p.def_abstract_eval(lambda x: x)
ad.deflinear2(materialize_p, lambda cotangent, x: [materialize_p.bind(cotangent)])
batching.primitive_batchers[materialize_p] = lambda args, dims: (
    materialize_p.bind(*args),
    dims[0],
)


@partial(jax.jit, inline=False)
def _identity(x):
    return x


def _call(x):
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


mlir.register_lowering(materialize_p, mlir.lower_fun(_call, multiple_results=False), platform="cpu")
mlir.register_lowering(materialize_p, mlir.lower_fun(lambda x: x, multiple_results=False))
