"""Values that are computed once."""

from functools import partial

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialize(x: jax.Array) -> jax.Array:
    """x itself, which XLA computes once and stores, and likewise its gradient.

    XLA's compiler for CPUs merges an elementwise operation into every operation that reads its
    result, and so computes a sum along a residual path, and backwards that of the gradients,
    anew for each reader and from the path's beginning: the time grows with the square of the
    depth. It removes `jax.lax.optimization_barrier` before it does so. What it does not look
    into is a call that is not to be inlined. Compilers for other devices are left alone.
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
