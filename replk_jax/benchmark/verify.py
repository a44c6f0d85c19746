"""Compares the implementations with the reference implementation on the current device."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.benchmark.depthwise import Layer
from replk_jax.benchmark.depthwise_programs import Operands, direction_function, draw_operands
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS, REFERENCE
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.shapes import Shape, square

# The largest error, relative to the largest value, that can be rounding: of float32 as a sum of
# bfloat16 terms, and of spectra of 16-bit values in tensorfloat32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}


def layers_to_verify(platform: str) -> list[Layer]:
    """Large and small kernels with few channels; channels are independent of each other."""
    shapes = [
        square(7, 13, 8),
        square(14, 27, 8),
        square(28, 29, 8),
        square(56, 31, 8),
        square(56, 5, 8),
        square(56, 3, 8, stride=2),
    ]
    batches = (4,) if platform == "cpu" else (16, 64)
    return [Layer(shape, batch) for batch in batches for shape in shapes]


def find_faults(
    layers: Iterable[Layer], dtypes: Iterable[str] = tuple(TOLERANCE)
) -> dict[str, str]:
    """Runs all implementations in all directions and compares them with `REFERENCE`.

    The reference is computed in float32, from the same rounded operands. An implementation is not
    run on convolutions that it does not support.

    Args:
      layers: the convolutions.
      dtypes: of the arrays, keys of `TOLERANCE`.

    Returns:
      The first fault of each implementation that raised an error or exceeded the tolerance, by
      the name of the implementation.
    """
    faults: dict[str, str] = {}
    for layer in layers:
        for dtype in dtypes:
            names = IMPLEMENTATIONS.keys() - {REFERENCE} - layer.explain(dtype).unsupported.keys()
            (operands,) = draw_operands(layer.shape, layer.batch, dtype, 1)
            expected = _reference(layer.shape, operands)
            for name in sorted(names - faults.keys()):
                if fault := _fault(layer.shape, name, operands, expected):
                    faults[name] = f"{fault} at {layer}, {dtype}"
    return faults


def _reference(shape: Shape, operands: Operands) -> list[jax.Array]:
    """y, dx and dk of the reference implementation, in float32."""
    exact = dataclasses.replace(shape.convolution, precision=lax.Precision.HIGHEST)
    return _run(REFERENCE, exact, [operand.astype(jnp.float32) for operand in operands])


def _fault(shape: Shape, name: str, operands: Operands, expected: list[jax.Array]) -> str | None:
    """What is wrong with the results of an implementation; None if nothing is."""
    dtype = str(operands[0].dtype)
    try:
        results = jax.block_until_ready(_run(name, shape.convolution, operands))
    except Exception as error:  # whatever a compiler or driver raises
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    for direction, actual, reference in zip(DIRECTIONS, results, expected, strict=True):
        error = jnp.abs(actual.astype(jnp.float32) - reference).max()
        relative = float(error / jnp.abs(reference).max())
        if not relative <= TOLERANCE[dtype]:  # NaN is a fault as well
            what = direction.replace("_", " ")
            return f"{what}: largest error {relative:.2g} of the largest value"
    return None


def _run(name: str, convolution: Convolution, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of an implementation, in the order of `DIRECTIONS`."""
    functions = [direction_function(each, convolution, name) for each in DIRECTIONS]
    return jax.jit(lambda *operands: [function(*operands) for function in functions])(*operands)
