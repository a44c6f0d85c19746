"""The layout and the number types that the Hopper kernels take."""

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.depthwise.mosaic_gpu.packing import pack, split, unpack


def test_packing_fills_up_with_zeros_and_back():
    x = np.random.default_rng(0).standard_normal((19, 5, 13, 3)).astype(np.float32)
    packed = pack(jnp.asarray(x))
    assert packed.shape == (3, 5, 16, 32)
    assert not packed[:, :, 13:].any()
    assert not packed[..., 19:].any()
    np.testing.assert_array_equal(packed[1, 2, 4, :19], x[:, 2, 4, 1])
    np.testing.assert_array_equal(unpack(packed, 19, 13), x)


def test_the_second_part_of_float32_survives_jit():
    """XLA must not take rounding to bfloat16 and back for the identity: no second part."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(1000), jnp.float32)
    high, low = jax.jit(split)(x)
    assert high.dtype == low.dtype == jnp.bfloat16
    assert np.any(low)
    np.testing.assert_allclose(np.float64(high) + np.float64(low), np.float64(x), rtol=2.0**-16)


def test_16_bit_types_are_not_split():
    x = jnp.ones(3, jnp.float16)
    assert split(x) == (x,)
