"""The Toeplitz bank: every row of a kernel as a matrix between columns."""

import jax
import jax.numpy as jnp

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.plan import BLOCK, Window


def toeplitz_bank(kernel: jax.Array, convolution: Convolution, rows: int) -> jax.Array:
    """The matrices that take a window of input columns to a block of 16 output columns.

    Row u of the kernel sends input column j' to output column j with weight
    k[u, j' - j + q], q the padding on the left. Between a block of outputs and its window
    (`Window`) that is one matrix for all blocks,

        bank[c, 16 s + j, j'] = k[u, j' - reach - j + q]    (0 outside the kernel)

    and the matrices of the rows are in slots s = KH - 1 - u + (rows - 1), the last row first,
    between rows - 1 slots of zeros on either side. What one input row gives to `rows`
    consecutive output rows is then a window of 16 `rows` consecutive rows of the bank.

    Args:
      kernel: (KH, KW, 1, C).
      convolution: its padding places the band.
      rows: output rows that one product computes.

    Returns:
      (C, 16 (KH + 2 (rows - 1)), depth) in the kernel's dtype.
    """
    taps, columns, _, channels = kernel.shape
    window = Window.of(convolution)
    first = window.reach - convolution.padding[1][0]
    k = jnp.transpose(kernel[::-1, :, 0], (2, 0, 1))
    k = jnp.pad(k, ((0, 0), (rows - 1, rows - 1), (first, window.depth + 1 - first - columns)))
    # Rows of depth + 1 laid end to end and cut at depth: each starts one column further right.
    k = jnp.broadcast_to(k[:, :, None], (channels, k.shape[1], BLOCK, window.depth + 1))
    k = k.reshape(channels, -1, BLOCK * (window.depth + 1))[..., : BLOCK * window.depth]
    return k.reshape(channels, (taps + 2 * (rows - 1)) * BLOCK, window.depth)
