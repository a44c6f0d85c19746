"""The depthwise convolution on a GPU: the Hopper kernels, and the forms for any device.

Needs jax, numpy and pytest. The reference is cuDNN's convolution of the same rounded operands in
float32. The kernels' tests in interpret mode are in tests/ops/depthwise/mosaic_gpu.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.ops.depthwise import shapes
from replk_jax.ops.depthwise.dispatch import Case
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.primitives import convolve

try:
    GPU = jax.devices("gpu")[0]
except RuntimeError:
    GPU = None

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU is None, reason="JAX finds no GPU on this machine"),
]
needs_hopper = pytest.mark.skipif(
    getattr(GPU, "compute_capability", None) != "9.0", reason="not a Hopper GPU"
)

LAYERS = shapes.REPLKNET_224[:3]
LARGE = [
    *LAYERS,
    *shapes.REPLKNET_384,
    *(shape for shape in shapes.TABLE_1 if shape.name in ("16/9", "32/13", "64/7", "64/17")),
    *shapes.UNUSUAL[:2],
]
# Of one result in 16 bits, relative to the largest: half a unit in the last place, and the sums'.
# bfloat16 x 3 leaves out the product of the small parts.
TOLERANCE = {"bfloat16": 2.0**-8, "float16": 2.0**-11 + 1e-5, "float32": 3e-5}


def operands(shape, batch, channels, dtype):
    rng = np.random.default_rng(0)
    convolution = shape.convolution
    sizes = (
        (batch, *convolution.size, channels),
        (*convolution.kernel_size, 1, channels),
        (batch, *convolution.output_size, channels),
    )
    return [jnp.asarray(rng.standard_normal(size), dtype) for size in sizes]


@partial(jax.jit, static_argnames=("convolution", "implementation"))
def computed(x, kernel, g, convolution, implementation):
    y, transpose = jax.vjp(
        lambda x, kernel: convolve(x, kernel, convolution, implementation), x, kernel
    )
    return y, *transpose(g)


def check(shape, batch, channels, dtype, implementation, tolerance):
    arrays = operands(shape, batch, channels, dtype)
    with jax.default_matmul_precision("highest"):
        wide = [array.astype(jnp.float32) for array in arrays]
        expected = computed(*wide, shape.convolution, "xla")
    actual = computed(*arrays, shape.convolution, implementation)
    for direction, a, b in zip(DIRECTIONS, actual, expected, strict=True):
        assert a.dtype == arrays[0].dtype
        largest = float(jnp.abs(b).max())
        np.testing.assert_allclose(np.float64(a), b, atol=tolerance * largest, err_msg=direction)


@needs_hopper
@pytest.mark.parametrize(
    ("shape", "batch"),
    [(shape, 64) for shape in LARGE] + [(shape, n) for shape in LAYERS for n in (16, 100, 128)],
    ids=lambda value: getattr(value, "name", value),
)
def test_hopper_kernels_in_bfloat16(shape, batch):
    check(shape, batch, 4, "bfloat16", "mosaic_gpu", TOLERANCE["bfloat16"])


@needs_hopper
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: shape.name)
def test_hopper_kernels_in_other_types(shape, dtype):
    check(shape, 64, 4, dtype, "mosaic_gpu", TOLERANCE[dtype])


@needs_hopper
def test_hopper_kernels_fill_the_machine():
    """With the layer's own number of channels: a block of threads on every multiprocessor."""
    check(shapes.REPLKNET_224[0], 64, 128, "bfloat16", "mosaic_gpu", TOLERANCE["bfloat16"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["dft", "shift", "toeplitz", None])
@pytest.mark.parametrize(
    "shape",
    [*shapes.REPLKNET_224[2:], *shapes.SMALL[1:3], *shapes.UNUSUAL[::3]],
    ids=lambda shape: shape.name,
)
def test_forms_for_any_device(shape, implementation, dtype):
    """16-bit spectra are multiplied as tensorfloat32, of ten bits, and not summed in it."""
    case = Case(shape.convolution, 3, 4, jnp.dtype(dtype), "cuda")
    if reason := case.unsupported().get(implementation):
        pytest.skip(reason)
    tolerance = 3e-5 if dtype == "float32" else 8e-3
    check(shape, 3, 4, dtype, implementation, tolerance)
