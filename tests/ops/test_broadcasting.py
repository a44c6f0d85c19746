"""Channel-wise sums and products: gradients that are sums of 2^17 terms, against float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from replk_jax.ops.broadcasting import add_bias, scale_channels

pytestmark = pytest.mark.usefixtures("strict_promotion")

MAP = (32, 64, 64, 2)  # 2^17 terms per channel
HALVES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def draw(shape, dtype, seed, size=1.0):
    """Positive, so that no sum is small by cancellation."""
    values = np.random.default_rng(seed).uniform(0.5 * size, 1.5 * size, shape)
    return jnp.asarray(values, dtype)


def wide(array):
    return np.asarray(array, np.float64)


def half_a_unit(dtype):
    """The error of rounding to a 16-bit type, and a little for the sum in float32."""
    return float(jnp.finfo(dtype).eps) / 2 + 1e-4


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function, g, *operands):
    y, pull_back = jax.vjp(function, *operands)
    return y, *pull_back(g)


@HALVES
def test_add_bias(dtype):
    x, bias, g = draw(MAP, dtype, 0), draw(MAP[-1:], dtype, 1), draw(MAP, dtype, 2, 0.01)
    y, dx, db = value_and_gradients(add_bias, g, x, bias)
    assert y.dtype == dx.dtype == db.dtype == dtype
    np.testing.assert_allclose(wide(y), wide(x) + wide(bias), rtol=half_a_unit(dtype))
    np.testing.assert_array_equal(dx, g)
    np.testing.assert_allclose(wide(db), wide(g).sum((0, 1, 2)), rtol=half_a_unit(dtype))


@HALVES
def test_scale_channels(dtype):
    shape = (1, 256, 512, 2)  # 2^17 terms per channel of an image
    x, scale, g = draw(shape, dtype, 0), draw((1, 1, 1, 2), dtype, 1), draw(shape, dtype, 2, 0.01)
    y, dx, ds = value_and_gradients(scale_channels, g, x, scale)
    assert y.dtype == dx.dtype == ds.dtype == dtype
    np.testing.assert_allclose(wide(y), wide(x) * wide(scale), rtol=half_a_unit(dtype))
    np.testing.assert_allclose(wide(dx), wide(g) * wide(scale), rtol=half_a_unit(dtype))
    expected = (wide(x) * wide(g)).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(wide(ds), expected, rtol=half_a_unit(dtype))


def test_nothing_but_the_operands_is_kept_for_the_backward_pass():
    x, scale = draw((2, 4, 4, 3), "bfloat16", 0), draw((2, 1, 1, 3), "bfloat16", 1)
    _, pull_back = jax.vjp(scale_channels, x, scale)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if hasattr(leaf, "dtype")]
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("bfloat16")}
    assert sum(leaf.size for leaf in kept) == x.size + scale.size
    _, pull_back = jax.vjp(add_bias, x, scale[0, 0, 0])
    assert not [leaf for leaf in jax.tree.leaves(pull_back) if getattr(leaf, "size", 0) > 1]


def test_any_order_and_both_modes():
    with jax.enable_x64(True):
        x, scale = draw((2, 2, 2, 3), "float64", 0), draw((2, 1, 1, 3), "float64", 1)
        check_grads(scale_channels, (x, scale), order=2)
        check_grads(add_bias, (x, scale[0, 0, 0]), order=2)
