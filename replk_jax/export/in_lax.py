"""Rewrites functions without the primitives of this package, for tools that know only JAX's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from replk_jax.ops.depthwise import xla
from replk_jax.ops.depthwise.primitives import forward_p
from replk_jax.ops.materialize import materialize_p

# The implementation of each primitive. Exported networks contain no gradients.
_IN_LAX = {
    forward_p: lambda x, kernel, *, convolution, **_: xla.forward(x, kernel, convolution),
    materialize_p: lambda x: x,
}
# The parameter that contains the function of a call, by primitive.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


def in_lax(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with `lax.conv_general_dilated` for every depthwise convolution.

    It is slower in JAX, but converters such as jax2onnx support it. It cannot be differentiated,
    and the convolutions must be outside of loops and branches, as in the networks of this package.

    Args:
      function: of arrays to a tree of arrays.
    """

    def plain(*arrays: jax.Array) -> Any:
        program, result = jax.make_jaxpr(function, return_shape=True)(*arrays)
        outputs = _evaluate(program.jaxpr, program.consts, arrays)
        # jax2onnx 0.17 transposes an output to NCHW if another layer reads it too. The barrier
        # prevents this.
        outputs = jax.lax.optimization_barrier(outputs)
        return jax.tree.unflatten(jax.tree.structure(result), outputs)

    return plain


def _evaluate(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def value(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [value(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _apply(equation, operands: list[Any]) -> Sequence[Any]:
    primitive, parameters = equation.primitive, equation.params
    if primitive.name in _CALLS:
        called = parameters[_CALLS[primitive.name]]
        return _evaluate(called.jaxpr, called.consts, operands)
    if primitive in _IN_LAX:
        return [_IN_LAX[primitive](*operands, **parameters)]
    outputs = primitive.bind(*operands, **parameters)
    return outputs if primitive.multiple_results else [outputs]
