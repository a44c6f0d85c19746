"""The operator against a float64 sum written out in NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replk_jax import DepthwiseConv2D, depthwise_conv2d
from replk_jax.ops.depthwise.convolution import Convolution
from tests.ops.depthwise import reference as definition


def reference(x, kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1)):
    """The definition, tap by tap, in float64."""
    padding = tuple(map(tuple, padding))
    convolution = Convolution(x.shape[1:3], kernel.shape[:2], stride, padding, dilation)
    return definition.forward(x, kernel, convolution)


def draw(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


SIZES = st.integers(1, 9)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3), h=SIZES, w=SIZES, c=st.integers(1, 5),
    kh=SIZES, kw=SIZES, stride=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_with_padding_of_half_the_kernel(n, h, w, c, kh, kw, stride, seed):
    """Odd and even kernels, larger than the map too; 1e-5 is 50 roundings of float32."""
    x, kernel = draw((n, h, w, c), seed), draw((kh, kw, 1, c), seed + 1)
    padding = (kh // 2, kw // 2)
    expected = reference(x, kernel, (stride, stride), [(p, p) for p in padding])
    actual = depthwise_conv2d(x, kernel, stride=stride, padding=padding)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "explicit"),
    [
        ({}, {"padding": ((3, 3), (2, 2))}),
        ({"padding": "VALID"}, {}),
        ({"padding": 3}, {"padding": ((3, 3), (3, 3))}),
        ({"padding": ((0, 1), 2)}, {"padding": ((0, 1), (2, 2))}),
        ({"padding": 4, "dilation": (2, 1)}, {"padding": ((4, 4), (4, 4)), "dilation": (2, 1)}),
        ({"padding": 0, "stride": (2, 1)}, {"stride": (2, 1)}),
    ],
)
def test_options(options, explicit):
    x, kernel, bias = draw((2, 14, 11, 3)), draw((7, 5, 1, 3), 1), draw((3,), 2)
    actual = depthwise_conv2d(x, kernel, bias, **options)
    np.testing.assert_allclose(
        actual, reference(x, kernel, **explicit) + bias, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bias_is_broadcast_explicitly(strict_promotion, dtype):
    x, kernel, bias = (jnp.asarray(draw(shape), dtype) for shape in ((2, 6, 5, 3), (3, 3, 1, 3), 3))
    y, dbias = jax.value_and_grad(lambda b: depthwise_conv2d(x, kernel, b).sum())(bias)
    assert (y.dtype, dbias.dtype) == (x.dtype, x.dtype)
    np.testing.assert_array_equal(np.float32(dbias), 60)


def test_strict_promotion_is_for_the_caller(strict_promotion):
    """Mixed operands are promoted implicitly, which the configuration forbids."""
    x, kernel = jnp.asarray(draw((1, 5, 5, 2)), jnp.bfloat16), jnp.asarray(draw((3, 3, 1, 2)))
    with pytest.raises(jax.dtypes.TypePromotionError):
        depthwise_conv2d(x, kernel)


def test_gradients():
    """Against the definition: the loss is linear in each operand, so its gradients are sums."""
    x, kernel, bias = draw((2, 6, 9, 3)), draw((5, 3, 1, 3), 1), draw((3,), 2)
    weights = draw((2, 6, 9, 3), 3)

    def loss(x, kernel, bias):
        return jnp.sum(weights * depthwise_conv2d(x, kernel, bias))

    dx, dkernel, dbias = jax.grad(loss, (0, 1, 2))(x, kernel, bias)
    flipped = kernel[::-1, ::-1]
    padding = ((2, 2), (1, 1))
    np.testing.assert_allclose(dx, reference(weights, flipped, padding=padding), atol=1e-4)
    padded = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    for u in range(5):
        for v in range(3):
            expected = np.sum(padded[:, u : u + 6, v : v + 9] * weights, (0, 1, 2))
            np.testing.assert_allclose(dkernel[u, v, 0], expected, atol=1e-4)
    np.testing.assert_allclose(dbias, weights.sum((0, 1, 2)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_types_are_summed_in_float32(dtype):
    """961 products: one rounding of the result, not one for each sum.

    The bound is one unit in the last place; sums in bfloat16 would be off by tens of them.
    """
    x, kernel = draw((1, 31, 31, 4)).astype(dtype), draw((31, 31, 1, 4), 1).astype(dtype)
    expected = reference(x, kernel, padding=((15, 15), (15, 15)))
    actual = depthwise_conv2d(jnp.asarray(x), jnp.asarray(kernel))
    assert actual.dtype == dtype
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(actual), expected, rtol=unit, atol=1e-3)


def test_promotes_operands():
    x, kernel = draw((1, 5, 5, 2)), draw((3, 3, 1, 2), 1)
    y = depthwise_conv2d(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel))
    assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "error", "message"),
    [
        ((4, 4, 3), (3, 3, 1, 3), None, ValueError, r"\(N, H, W, C\)"),
        ((1, 4, 4, 3), (3, 3, 1, 4), None, ValueError, r"must be \(KH, KW, 1, 3\)"),
        ((1, 4, 4, 3), (3, 3, 3, 3), None, ValueError, r"must be \(KH, KW, 1, 3\)"),
        ((1, 4, 4, 3), (3, 3, 1, 3), (4,), ValueError, r"bias must be of shape \(3,\)"),
    ],
)
def test_bad_shapes(x, kernel, bias, error, message):
    bias = None if bias is None else np.zeros(bias, np.float32)
    with pytest.raises(error, match=message):
        depthwise_conv2d(np.zeros(x, np.float32), np.zeros(kernel, np.float32), bias)


def test_integers_are_an_error():
    with pytest.raises(TypeError, match="floating-point"):
        depthwise_conv2d(np.zeros((1, 4, 4, 3), np.int32), np.zeros((3, 3, 1, 3), np.int32))


def test_layer_takes_the_variables_of_flax_conv():
    x = draw((2, 9, 9, 6))
    settings = dict(kernel_size=(5, 3), strides=2, padding="VALID", kernel_dilation=(1, 2))
    conv = nn.Conv(6, feature_group_count=6, **settings)
    variables = conv.init(jax.random.key(0), x)
    layer = DepthwiseConv2D(**settings)
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, variables
    )
    np.testing.assert_allclose(
        layer.apply(variables, x), conv.apply(variables, x), rtol=1e-5, atol=1e-5
    )
    half = DepthwiseConv2D(**settings, dtype=jnp.bfloat16)
    assert half.apply(variables, x).dtype == jnp.bfloat16


def test_layer_takes_an_implementation():
    x = draw((1, 9, 9, 2))
    layer = DepthwiseConv2D((3, 3), implementation="toeplitz")
    assert layer.apply(layer.init(jax.random.key(0), x), x).shape == x.shape
    with pytest.raises(ValueError, match="squares the feature map"):
        layer.init(jax.random.key(0), draw((1, 40, 40, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "must be at least 1"),
        ({"dilation": (1, 0)}, "must be at least 1"),
        ({"stride": (2, 2, 2)}, "stride must be one whole number or two"),
        ({"stride": 2.0}, "stride must be one whole number or two"),
        ({"padding": ((1, 1),)}, "padding must be for rows and columns"),
        ({"padding": 1.5}, "padding must be one whole number or two"),
        ({"padding": "CIRCULAR"}, '"SAME", "VALID" or numbers'),
        ({"precision": "exact"}, "precision must be None, 'default', 'high' or 'highest'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(draw((1, 5, 5, 2)), draw((3, 3, 1, 2)), **options)


def test_precision_of_the_configuration():
    """One that convolutions lack is not for them."""
    x, kernel = draw((1, 5, 5, 2)), draw((3, 3, 1, 2))
    for name in ("high", "BF16_BF16_F32_X3"):
        with jax.default_matmul_precision(name):
            assert depthwise_conv2d(x, kernel).shape == x.shape


LARGE = 1e4  # in a corner, among values of about 1


def highest_precision(asked, *, implementation=None):
    """y, dx and dk for a map and a gradient with a large value, each of another channel; with
    float64 references, and for every value the sum of the sizes of its terms."""
    convolution = Convolution((20, 18), (11, 9), padding=((5, 5), (4, 4)))
    x, kernel, g = draw((2, 20, 18, 3)), draw((11, 9, 1, 3), 1), draw((2, 20, 18, 3), 2)
    x[0, 0, 0, 1] = g[1, -1, -1, 2] = LARGE
    how = dict(padding=convolution.padding, precision=asked, implementation=implementation)
    y, transpose = jax.vjp(lambda x, kernel: depthwise_conv2d(x, kernel, **how), x, kernel)
    operands = [(x, kernel), (g, kernel), (x, g)]
    functions = [definition.forward, definition.input_gradient, definition.kernel_gradient]
    for actual, function, pair in zip((y, *transpose(g)), functions, operands, strict=True):
        terms = function(*map(np.abs, pair), convolution)
        yield actual, function(*pair, convolution), terms


class TestHighestPrecision:
    """Every error is in proportion to the terms of its own sum: 2e-6 is 17 roundings. The Fourier
    matrices err by up to 1e-4 of it here, far from the large value."""

    @pytest.mark.parametrize("asked", ["highest", "float32", jax.lax.Precision.HIGHEST])
    def test_as_an_argument(self, asked):
        for actual, expected, terms in highest_precision(asked):
            assert (np.abs(actual - expected) <= 2e-6 * terms).all()

    def test_an_implementation_that_is_named_takes_precedence(self):
        """With the documented error: 3e-7 of the largest value, twice that at the most."""
        for actual, expected, terms in highest_precision("highest", implementation="dft"):
            error = np.abs(actual - expected)
            assert (error > 2e-6 * terms).any()
            assert error.max() <= 6e-7 * max(LARGE, np.abs(expected).max())


def test_layer_takes_one_number_and_any_batch():
    layer = DepthwiseConv2D(3)
    x = draw((2, 3, 8, 7, 4))
    variables = layer.init(jax.random.key(0), x)
    conv = nn.Conv(4, (3, 3), feature_group_count=4)
    for part in (x, x[0], x[0, 0]):
        np.testing.assert_allclose(
            layer.apply(variables, part), conv.apply(variables, part), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("implementation", "shape"),
    [
        (None, (32, 64, 64, 2)),
        ("xla", (32, 64, 64, 2)),
        ("dft", (32, 64, 64, 2)),
        ("shift", (32, 64, 64, 2)),
        ("toeplitz", (1024, 12, 12, 2)),
    ],
)
def test_sums_of_many_16_bit_terms(implementation, shape, dtype):
    """Gradients of 2^17 terms and more, where a sum in 16 bits stops growing at a hundredth.

    Results are rounded to the 16-bit type: y twice, before and after the bias is added. All terms
    are positive.
    """
    rng = np.random.default_rng(0)
    channels = shape[-1]
    x, kernel, bias, g = (
        jnp.asarray(rng.uniform(0.5 * size, 1.5 * size, each), dtype)
        for each, size in [(shape, 0.1), ((3, 3, 1, channels), 1), ((channels,), 1), (shape, 0.01)]
    )

    @jax.jit
    def run(g, *operands):
        convolve = partial(depthwise_conv2d, implementation=implementation)
        y, pull_back = jax.vjp(convolve, *operands)
        return y, *pull_back(g)

    actual = run(g, x, kernel, bias)
    convolution = Convolution(shape[1:3], (3, 3), padding=((1, 1), (1, 1)))
    x, kernel, bias, g = (np.asarray(each, np.float64) for each in (x, kernel, bias, g))
    expected = (
        definition.forward(x, kernel, convolution) + bias,
        definition.input_gradient(g, kernel, convolution),
        definition.kernel_gradient(x, g, convolution),
        g.sum((0, 1, 2)),
    )
    unit = float(jnp.finfo(dtype).eps)
    for name, a, b in zip(("y", "dx", "dk", "db"), actual, expected, strict=True):
        assert a.dtype == dtype
        tolerance = (unit if name == "y" else unit / 2) + 2e-4
        np.testing.assert_allclose(np.float64(a), b, rtol=tolerance, err_msg=name)


def test_the_gradient_of_what_vmap_shares_is_summed_in_float32():
    """x is one of 1024 kernels' and gets the sum of their gradients."""
    x, g = jnp.ones((1, 1, 1, 2), "bfloat16"), jnp.ones((1024, 1, 1, 1, 2), "bfloat16")
    kernels = jnp.ones((1024, 1, 1, 1, 2), "bfloat16")
    _, pull_back = jax.vjp(lambda x: jax.vmap(lambda k: depthwise_conv2d(x, k))(kernels), x)
    np.testing.assert_array_equal(np.float64(pull_back(g)[0]), np.full((1, 1, 1, 2), 1024.0))
