"""Resizing and pooling against loops in float64, and against PyTorch's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.ops.resize import (
    adaptive_average_pool,
    adaptive_pool_matrix,
    apply_matrices,
    bilinear_matrix,
    resize_bilinear,
)
from tests import reference_data
from tests.segmentation import golden, reference

pytestmark = pytest.mark.usefixtures("strict_promotion")

# Growing, shrinking, both, by no whole number, from and to single rows, columns and pixels.
SIZES = [
    ((5, 7), (10, 14)),
    ((5, 7), (9, 4)),
    ((6, 4), (3, 9)),
    pytest.param((5, 7), (2, 3), marks=pytest.mark.exhaustive),
    ((1, 7), (4, 5)),
    pytest.param((3, 1), (1, 6), marks=pytest.mark.exhaustive),
    ((1, 1), (4, 3)),
    pytest.param((4, 6), (1, 1), marks=pytest.mark.exhaustive),
    ((9, 9), (25, 33)),
]
BOTH = pytest.mark.parametrize("align_corners", [False, True])


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@BOTH
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resizing(before, after, align_corners):
    """In float64 the rounding of some ten operations; in float32 2e-6 of values of about 1."""
    x = draw((2, *before, 3))
    expected = reference.resize(x, after, align_corners)
    with jax.enable_x64(True):
        actual = resize_bilinear(jnp.asarray(x), after, align_corners)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    actual = jax.jit(resize_bilinear, static_argnums=(1, 2))(jnp.float32(x), after, align_corners)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@BOTH
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_gradient_is_the_transpose(before, after, align_corners):
    """<A x, y> = <x, A' y>, with A x from loops; and the tangent is A x itself."""
    x, y = draw((2, *before, 3)), draw((2, *after, 3), seed=1)
    expected = reference.resize(x, after, align_corners)
    with jax.enable_x64(True):

        def resize(x):
            return resize_bilinear(x, after, align_corners)

        _, pull_back = jax.vjp(resize, jnp.zeros_like(x))
        (gradient,) = pull_back(jnp.asarray(y))
        _, tangent = jax.jvp(resize, (jnp.zeros_like(x),), (jnp.asarray(x),))
    np.testing.assert_allclose(np.sum(x * np.asarray(gradient)), np.sum(expected * y), atol=1e-12)
    np.testing.assert_allclose(tangent, expected, rtol=0, atol=1e-13)


@BOTH
def test_of_a_batch_of_batches(align_corners):
    x = jnp.float32(draw((3, 2, 5, 7, 3)))

    def resize(x):
        return resize_bilinear(x, (8, 6), align_corners)

    stacked = jax.jit(jax.vmap(resize))(x)
    np.testing.assert_allclose(stacked, jnp.stack([resize(each) for each in x]), atol=1e-6)
    gradient = jax.vmap(jax.grad(lambda x: resize(x).sum()))(x)
    each = jnp.stack([jax.grad(lambda x: resize(x).sum())(each) for each in x])
    np.testing.assert_allclose(gradient, each, atol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bits_are_rounded_once(dtype, align_corners):
    """Of positive values in both passes, so that two roundings bound the relative error; the
    gradient of a pixel sums 64 x 64 values, more than 16 bits could."""
    x = jnp.asarray(np.abs(draw((1, 2, 2, 3))) + 0.5, dtype)
    y, pull_back = jax.vjp(lambda x: resize_bilinear(x, (128, 128), align_corners), x)
    assert y.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), reference.resize(wide, (128, 128), align_corners), rtol=eps
    )
    (gradient,) = pull_back(jnp.ones_like(y))
    columns = bilinear_matrix(128, 2, align_corners, np.float64).sum(0)
    expected = np.broadcast_to(np.outer(columns, columns)[None, :, :, None], x.shape)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, rtol=eps)


def test_other_pixels_do_not_matter():
    """A position reads its neighbours alone: NaN and infinity stay where they are."""
    x = jnp.zeros((1, 8, 8, 1)).at[0, 7, 7].set(jnp.nan).at[0, 7, 0].set(jnp.inf)
    y = resize_bilinear(x, (16, 16))
    assert not y[0, :12].any()
    assert np.isnan(y[0, 15, 15]).all()


def test_the_same_size_is_the_same_array():
    x = jnp.ones((1, 3, 5, 2))
    assert resize_bilinear(x, (3, 5)) is x


@pytest.mark.parametrize(
    ("before", "size"), [((5, 7), (1, 1)), ((5, 7), (3, 2)), ((2, 3), (6, 6)), ((9, 1), (2, 6))]
)
def test_pooling(before, size):
    x = draw((2, *before, 3))
    expected = reference.adaptive_pool(x, size)
    with jax.enable_x64(True):
        actual = adaptive_average_pool(jnp.asarray(x), size)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        adaptive_average_pool(jnp.float32(x), size), expected, rtol=0, atol=1e-6
    )
    assert adaptive_average_pool(jnp.asarray(x, jnp.bfloat16), size).dtype == jnp.bfloat16


def test_pooling_to_a_square():
    x = jnp.float32(draw((1, 5, 7, 2)))
    np.testing.assert_array_equal(adaptive_average_pool(x, 3), adaptive_average_pool(x, (3, 3)))


def test_16_bits_are_averaged_in_32():
    """512 x 512 values of about 1: a sum in 16 bits would stop at 256."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (1, 512, 512, 1)), jnp.bfloat16)
    expected = np.asarray(x, np.float64).mean((1, 2), keepdims=True)
    pooled = np.asarray(adaptive_average_pool(x, 1), np.float64)
    np.testing.assert_allclose(pooled, expected, rtol=float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices(dtype):
    for output, size in itertools.product((1, 2, 5, 8), repeat=2):
        matrices = [bilinear_matrix(output, size, corners, dtype) for corners in (False, True)]
        for matrix in [*matrices, adaptive_pool_matrix(output, size, dtype)]:
            assert (matrix.shape, matrix.dtype) == ((output, size), dtype)
            np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
            assert (matrix >= 0).all()


@pytest.mark.parametrize("shape", [(1, 3, 8, 2), (1, 8, 3, 2)])
def test_matrices_are_applied_to_rows_and_columns(shape):
    """Whichever comes first."""
    x = draw(shape)
    rows, columns = draw((4, shape[1]), seed=1), draw((5, shape[2]), seed=2)
    expected = np.einsum("Hh,Ww,nhwc->nHWc", rows, columns, x)
    with jax.enable_x64(True):
        actual = apply_matrices(jnp.asarray(x), rows, columns)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [((0, 3), (2, 2)), ((3, 0), (2, 2)), ((2, 2), (2, 0))])
def test_no_size_is_empty(sizes):
    before, after = sizes
    x = jnp.zeros((1, *before, 1))
    for function in (resize_bilinear, adaptive_average_pool):
        with pytest.raises(ValueError, match="must be at least 1; got 0"):
            function(x, after)


@reference_data.required
def test_pytorch():
    """Every array of the file, within the rounding of float32."""
    arrays = golden.load("resize_and_pool")
    x = jnp.asarray(arrays.pop("input"))
    for name, expected in arrays.items():
        kind, *words = name.split("_")
        if kind == "out":
            size = tuple(map(int, words[0].split("x")))
            actual = resize_bilinear(x, size, words[1] == "ac1")
        else:
            actual = adaptive_average_pool(x, int(words[-1]))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6, err_msg=name)
    assert len(arrays) == 16
