"""The array layout of the Hopper kernels: channels first, batch last, 16-bit elements."""

import jax
import jax.numpy as jnp
from jax import lax


def pack(x: jax.Array, batch_multiple: int = 16) -> jax.Array:
    """(N, H, W, C) to (C, H, W', N'), padded with zeros.

    W' is W rounded up to a multiple of 8: the TMA's tiled copies require this of every dimension
    above 8. N' is N rounded up to a multiple of `batch_multiple`, which is at least 16: so every
    row of the innermost dimension is aligned to 16 bytes and spans a 32-byte swizzle.
    """
    n, _, w, _ = x.shape
    x = jnp.pad(x, ((0, -n % batch_multiple), (0, 0), (0, -w % 8), (0, 0)))
    return jnp.transpose(x, (3, 1, 2, 0))


def unpack(y: jax.Array, batch: int, width: int) -> jax.Array:
    """(C, H, W', N') back to (N, H, W, C)."""
    return jnp.transpose(y, (3, 1, 2, 0))[:batch, :, :width]


def split(array: jax.Array) -> tuple[jax.Array, ...]:
    """The 16-bit terms whose sum is the array.

    A 16-bit array is its own term. A float32 array has two terms in bfloat16, whose sum lacks its
    last eight bits.
    """
    if array.dtype != jnp.float32:
        return (array,)
    # reduce_precision, because XLA may remove a cast to bfloat16 and back.
    high = lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (array - high).astype(jnp.bfloat16)
