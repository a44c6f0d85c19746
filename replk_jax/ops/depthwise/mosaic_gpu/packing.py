"""What the Hopper kernels take: channels first, batch last, and 16-bit numbers."""

import jax
import jax.numpy as jnp
from jax import lax


def pack(x: jax.Array, batch_multiple: int = 16) -> jax.Array:
    """(N, H, W, C) to (C, H, W', N'), filled up with zeros.

    W' is the next multiple of 8, which the TMA's tiled copies demand of every dimension above
    8; N' the next multiple of `batch_multiple`, at least 16, so that every row of the innermost
    dimension starts on 16 bytes and spans a 32-byte swizzle.
    """
    n, _, w, _ = x.shape
    x = jnp.pad(x, ((0, -n % batch_multiple), (0, 0), (0, -w % 8), (0, 0)))
    return jnp.transpose(x, (3, 1, 2, 0))


def unpack(y: jax.Array, batch: int, width: int) -> jax.Array:
    """(C, H, W', N') back to (N, H, W, C)."""
    return jnp.transpose(y, (3, 1, 2, 0))[:batch, :, :width]


def split(array: jax.Array) -> tuple[jax.Array, ...]:
    """An array of a 16-bit type alone; a float32 one as two of bfloat16 that sum to it, but for
    its last eight bits."""
    if array.dtype != jnp.float32:
        return (array,)
    # reduce_precision, because XLA may take a cast to bfloat16 and back for nothing to do.
    high = lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (array - high).astype(jnp.bfloat16)
