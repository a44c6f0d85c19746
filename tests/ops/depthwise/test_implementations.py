"""Every implementation, every named shape: the result and both gradients against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replk_jax.ops.depthwise import shapes
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.primitives import convolve
from tests.ops.depthwise import reference

pytestmark = pytest.mark.usefixtures("strict_promotion")

# The kernels for GPUs have tests of their own, in tests/ops/depthwise/mosaic_gpu.
ANYWHERE = ("xla", "dft", "shift", "toeplitz")
SHAPES = (
    *shapes.REPLKNET_224,
    *shapes.SMALL,
    *shapes.REPLKNET_384,
    *shapes.TABLE_1,
    *shapes.REPLKNET_DETECTION[:1],
    *shapes.UNUSUAL,
)


# Much the same in thirty sizes: some of them are enough, and one version of JAX.
MANY_ALIKE = {
    shape: pytest.mark.exhaustive if number % 7 else pytest.mark.slow
    for number, shape in enumerate(shapes.TABLE_1)
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operands(convolution, batch, channels, seed=0):
    """x, kernel and g, in float32."""
    return (
        draw(batch, *convolution.size, channels, seed=seed),
        draw(*convolution.kernel_size, 1, channels, seed=seed + 1),
        draw(batch, *convolution.output_size, channels, seed=seed + 2),
    )


@functools.cache
def expected(shape, batch, channels):
    """y, dx and dk in float64, for `operands`."""
    return of_reference(*operands(shape.convolution, batch, channels), shape.convolution)


def of_reference(x, kernel, g, convolution):
    return (
        reference.forward(x, kernel, convolution),
        reference.input_gradient(g, kernel, convolution),
        reference.kernel_gradient(x, g, convolution),
    )


@functools.partial(jax.jit, static_argnames=("convolution", "implementation"))
def computed(x, kernel, g, convolution, implementation):
    """y, dx and dk."""
    y, transpose = jax.vjp(
        lambda x, kernel: convolve(x, kernel, convolution, implementation), x, kernel
    )
    return y, *transpose(g)


def cases(largest_map, implementations=ANYWHERE):
    """The pairs of an implementation and a named shape that it computes."""
    return [
        pytest.param(name, shape, id=f"{name}-{shape.name}", marks=MANY_ALIKE.get(shape, ()))
        for name in implementations
        for shape in SHAPES
        if shape.size[0] <= largest_map
        and not IMPLEMENTATIONS[name].unsupported_reason(shape.convolution, 1, 3, np.float32)
    ]


def assert_close(actual, reference, tolerance):
    """Errors are measured by the largest value, at least the operands' size of 1, since each
    value is a sum of many products of both signs: one that happens to be small, or to be zero,
    is not more accurate than the others."""
    for direction, a, b in zip(DIRECTIONS, actual, reference, strict=True):
        largest = np.abs(b).max(initial=1)
        np.testing.assert_allclose(np.float64(a), b, atol=tolerance * largest, err_msg=direction)


class TestImplementation:
    """With 3 channels: fewer than the layers have, the same geometry."""

    @pytest.mark.parametrize(("implementation", "shape"), cases(largest_map=200))
    def test_float32(self, implementation, shape):
        """3e-6 of the largest value is 25 roundings. The largest error of sums of up to 67,000
        products (the kernel gradient of 200 x 336) has been 6e-7 of it."""
        batch = 3 if shape.size[0] <= 28 else 1
        actual = computed(*operands(shape.convolution, batch, 3), shape.convolution, implementation)
        assert [a.dtype for a in actual] == [np.float32] * 3
        assert_close(actual, expected(shape, batch, 3), 3e-6)

    @pytest.mark.parametrize(
        "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.exhaustive)]
    )
    @pytest.mark.parametrize(("implementation", "shape"), cases(14))
    def test_16_bit_types_are_summed_in_float32(self, implementation, shape, dtype):
        """The result is rounded once, by half a unit in the last place at the most; a sum in 16
        bits would be off by tens of units."""
        rounded = [jnp.asarray(a, dtype) for a in operands(shape.convolution, 1, 3)]
        actual = computed(*rounded, shape.convolution, implementation)
        assert [a.dtype for a in actual] == [dtype] * 3
        exact = of_reference(*(np.float64(a) for a in rounded), shape.convolution)
        assert_close(actual, exact, float(jnp.finfo(dtype).eps) / 2 + 1e-5)

    @pytest.mark.parametrize(("implementation", "shape"), cases(largest_map=14))
    def test_float64(self, implementation, shape):
        with jax.enable_x64(True):
            doubled = [jnp.asarray(a, jnp.float64) for a in operands(shape.convolution, 1, 3)]
            actual = computed(*doubled, shape.convolution, implementation)
        assert [a.dtype for a in actual] == [np.float64] * 3
        assert_close(actual, expected(shape, 1, 3), 1e-13)


@st.composite
def convolutions(draw):
    """Any geometry with at least one output."""

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    convolution = Convolution(
        size=pair(1, 9),
        kernel_size=pair(1, 9),
        stride=pair(1, 3),
        padding=(pair(0, 6), pair(0, 6)),
        dilation=pair(1, 3),
    )
    grown = [
        max(0, (k - 1) * d + 1 - size - sum(pad))
        for k, d, size, pad in zip(
            convolution.kernel_size,
            convolution.dilation,
            convolution.size,
            convolution.padding,
            strict=True,
        )
    ]
    size = tuple(size + more for size, more in zip(convolution.size, grown, strict=True))
    return Convolution(
        size,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )


@pytest.mark.parametrize("implementation", ANYWHERE)
@settings(max_examples=4, deadline=None)
@given(convolution=convolutions(), batch=st.integers(1, 3), channels=st.integers(1, 4))
def test_any_geometry(implementation, convolution, batch, channels):
    if IMPLEMENTATIONS[implementation].unsupported_reason(convolution, batch, channels, np.float32):
        return
    arrays = operands(convolution, batch, channels)
    actual = computed(*arrays, convolution, implementation)
    assert_close(actual, of_reference(*arrays, convolution), 1e-5)


@pytest.mark.parametrize("implementation", ANYWHERE)
def test_cropping(implementation):
    """Negative padding, which the gradient of more than full padding has."""
    convolution = Convolution((9, 8), (3, 3), padding=((-2, 1), (1, -3)))
    x, kernel, g = operands(convolution, 2, 3)
    inner = Convolution((7, 5), (3, 3), padding=((0, 1), (1, 0)))
    y, dx, dk = of_reference(x[:, 2:, :-3], kernel, g, inner)
    dx = np.pad(dx, ((0, 0), (2, 0), (0, 3), (0, 0)))
    assert_close(computed(x, kernel, g, convolution, implementation), (y, dx, dk), 1e-5)


@pytest.mark.parametrize("implementation", ANYWHERE)
def test_empty_batch(implementation):
    convolution = Convolution((5, 4), (3, 3), padding=((1, 1), (1, 1)))
    y, dx, dk = computed(*operands(convolution, 0, 3), convolution, implementation)
    assert y.shape == dx.shape == (0, 5, 4, 3)
    assert not dk.any()


def test_empty_map():
    """Padding alone: zeros."""
    convolution = Convolution((0, 4), (3, 3), padding=((2, 2), (1, 1)))
    y, dx, dk = computed(*operands(convolution, 1, 3), convolution, None)
    assert y.shape == (1, 2, 4, 3)
    assert dx.size == 0
    assert not y.any()
    assert not dk.any()


def test_few_shapes_are_left_out():
    """What `cases` leaves out is what the forms cannot do, and no more."""
    for name, least in (("xla", 1.0), ("dft", 1.0), ("shift", 0.4), ("toeplitz", 0.1)):
        assert len(cases(200, (name,))) >= least * len(SHAPES), name


def test_no_output():
    """A window that does not fit: no results, and gradients of zero."""
    x, kernel, g = jnp.ones((2, 3, 3, 4)), jnp.ones((5, 5, 1, 4)), jnp.ones((2, 0, 0, 4))
    y, dx, dk = computed(x, kernel, g, Convolution((3, 3), (5, 5)), None)
    assert y.shape == (2, 0, 0, 4)
    assert not dx.any()
    assert not dk.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("implementation", ANYWHERE)
def test_what_a_value_that_is_not_finite_spoils(implementation, bad):
    """Its own results with every implementation; no more than these with "xla" and "shift"; no
    other channel and no other image with any."""
    convolution = Convolution((9, 9), (3, 3), padding=((1, 1), (1, 1)))
    x, kernel, g = operands(convolution, 2, 3)
    x[0, 4, 5, 1] = bad
    y, _, dk = computed(x, kernel, g, convolution, implementation)
    contaminated = ~np.isfinite(y)
    own = np.zeros_like(contaminated)
    own[0, 3:6, 4:7, 1] = True
    assert contaminated[own].all()
    if implementation in ("xla", "shift"):
        np.testing.assert_array_equal(contaminated, own)
    assert not contaminated[1].any()
    assert not contaminated[..., [0, 2]].any()
    assert not np.isfinite(dk[..., 1]).any()
    assert np.isfinite(np.asarray(dk)[..., [0, 2]]).all()
