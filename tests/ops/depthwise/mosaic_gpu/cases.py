"""What the tests of the Hopper kernels share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.ops.depthwise import shapes
from replk_jax.ops.depthwise.convolution import Convolution

JAX = tuple(int(part) for part in jax.__version__.split(".")[:2])
needs_0_11 = pytest.mark.skipif(
    JAX < (0, 11),
    reason="the interpreter of JAX 0.10 knows neither transposed operands nor layouts",
)

ROUNDING = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11}  # of one result, relative to it
SPLIT = 6e-6  # of float32 in two parts, relative to a typical result; simulated: 4.5e-6


def same(size, taps):
    """A convolution that keeps the size of the map; each argument a number or a pair."""
    size, taps = ((n, n) if isinstance(n, int) else n for n in (size, taps))
    return Convolution(size, taps, padding=tuple((k // 2, k - 1 - k // 2) for k in taps))


def _triples(*suites):
    """(size, taps, channels) of named shapes that the kernels are for."""
    return [
        (shape.size[0], shape.kernel_size[0], shape.channels)
        for suite in suites
        for shape in suite
        if shape.size[0] > 8 and shape.kernel_size[0] >= 7
    ]


REPLKNET = _triples(shapes.REPLKNET_224, shapes.REPLKNET_384)
GRID = _triples(shapes.TABLE_1)


def assert_close(actual, expected):
    """16-bit results are sums in float32, rounded once; float32 lacks one product of parts."""
    actual, expected = np.asarray(actual), np.float64(expected)
    size = np.sqrt(np.mean(expected**2))
    rounding = ROUNDING.get(actual.dtype.type, 0)
    np.testing.assert_allclose(
        np.float64(actual),
        expected,
        rtol=1.01 * rounding,
        atol=(4 * SPLIT if rounding == 0 else 1e-5) * size,
    )
    if rounding == 0:
        assert np.sqrt(np.mean((actual - expected) ** 2)) < SPLIT * size
