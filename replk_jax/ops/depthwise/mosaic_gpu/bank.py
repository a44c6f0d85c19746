"""The Toeplitz bank: each row of a kernel as a Toeplitz matrix."""

import jax
import jax.numpy as jnp

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.plan import BLOCK, Window


def toeplitz_bank(kernel: jax.Array, convolution: Convolution, rows: int) -> jax.Array:
    """The matrices that map a window of input columns to a block of 16 output columns.

    Row u of the kernel maps input column j' to output column j with weight k[u, j' - j + q], where
    q is the padding on the left. The matrix from the window (`Window`) of a block to the block is
    the same for all blocks:

        bank[c, 16 s + j, j'] = k[u, j' - reach - j + q]    (0 outside the kernel)

    The matrix of row u is in slot s = KH - 1 - u + (rows - 1), so the last row comes first. There
    are rows - 1 slots of zeros at both ends. The contribution of one input row to `rows`
    consecutive output rows is a product with 16 `rows` consecutive rows of the bank.

    Args:
      kernel: (KH, KW, 1, C).
      convolution: the geometry.
      rows: output rows that one product computes.

    Returns:
      (C, 16 (KH + 2 (rows - 1)), depth) in the kernel's dtype.
    """
    taps, columns, _, channels = kernel.shape
    window = Window.of(convolution)
    first = window.reach - convolution.padding[1][0]
    k = jnp.transpose(kernel[::-1, :, 0], (2, 0, 1))
    k = jnp.pad(k, ((0, 0), (rows - 1, rows - 1), (first, window.depth + 1 - first - columns)))
    # Concatenated rows of length depth + 1, split into rows of length depth: each row is shifted
    # one column further to the right.
    k = jnp.broadcast_to(k[:, :, None], (channels, k.shape[1], BLOCK, window.depth + 1))
    k = k.reshape(channels, -1, BLOCK * (window.depth + 1))[..., : BLOCK * window.depth]
    return k.reshape(channels, (taps + 2 * (rows - 1)) * BLOCK, window.depth)
