"""The gradient with respect to a large depthwise kernel, on Hopper's tensor cores.

For every channel the gradient is a sum over the batch of shifted products:

    dk[u, v] = sum g[n, i, j] x[n, i + u - p, j + v - q]        over n, i and j.

The sum over the batch is a matrix product of a row of g and a row of x. The result contains the
products of all pairs of columns, and one diagonal belongs to one kernel column v. Pairs of rows at
the same distance belong to the same kernel row, and pairs of columns at the same distance to the
same kernel column. So many of these matrix products share an accumulator:

    Q[s, r, j, a] = sum g[n, R t + r, B b + j] x[n, R t + s - p, B b + a - lead]   over n, t and b

Here g is divided into tiles of R rows and B columns, r < R, j < B; tile (t, b) is the t-th from the
top and the b-th from the left. The Pallas kernel of `pair_products` computes Q. The gradient is

    dk[u, v] = sum Q[u + r, r, j, v + j + lead - q]             over r and j.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.packing import pack, split
from replk_jax.ops.depthwise.mosaic_gpu.plan import always_unsupported_reason, round_up
from replk_jax.ops.depthwise.mosaic_gpu.tiling import Tiling, choose_tiling


def unsupported_gradient_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype
) -> str | None:
    """Why the kernel does not support this gradient; None if it does.

    Args:
      convolution: the convolution.
      batch: N; None if it is symbolic.
      channels: C.
      dtype: of all arrays.
    """
    if reason := always_unsupported_reason(convolution, batch, channels, dtype):
        return reason
    # The zeros above and below an image are read from beyond its width. This fails for an image of
    # one tile of 8 columns, because the copy then drops the index of the tile.
    if min(convolution.size[1], convolution.output_size[1]) <= 8:
        return (
            "its kernels support inputs and outputs from 9 columns, "
            f"not {convolution.size} to {convolution.output_size}"
        )
    if choose_tiling(convolution, 16) is None:
        return (
            f"kernel size {convolution.kernel_size} at {convolution.size} pixels exceeds "
            "the registers or the shared memory"
        )
    return None


def kernel_gradient(
    x: jax.Array, g: jax.Array, convolution: Convolution, *, interpret: Any = False
) -> jax.Array:
    """The gradient with respect to the kernel.

    16-bit operands are multiplied exactly and accumulated in float32. A float32 operand is split
    into two bfloat16 terms, and the smallest of the four products is omitted.

    Args:
      x: the input, (N, H, W, C), bfloat16, float16 or float32.
      g: the gradient with respect to the output, (N, OH, OW, C), of the same dtype.
      convolution: a convolution for which `unsupported_gradient_reason` returns None.
      interpret: False compiles for the GPU. Parameters of Pallas' GPU interpreter run the kernel on
        the CPU.

    Returns:
      (KH, KW, 1, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_gradient_reason` returns.
    """
    multiple = min(64, max(16, 1 << (len(x) - 1).bit_length()))
    x, g = pack(x, multiple), pack(g, multiple)
    return kernel_gradient_packed(x, g, convolution, interpret=interpret)


def kernel_gradient_packed(
    x: jax.Array, g: jax.Array, convolution: Convolution, *, interpret: Any = False
) -> jax.Array:
    """The gradient with respect to the kernel, for operands in the packed layout.

    Args:
      x: the input, (C, H, W', N') from `pack`: its padding columns are zero.
      g: the gradient with respect to the output, (C, OH, OW', N') from `pack`.
      convolution, interpret: as in `kernel_gradient`.

    Returns:
      (KH, KW, 1, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_gradient_reason` returns, or for shapes that do
        not match.
    """
    # The package must work without Pallas, so it is imported on first use.
    from replk_jax.ops.depthwise.mosaic_gpu.pair_products import pair_products

    channels, _, _, batch = x.shape
    if reason := unsupported_gradient_reason(convolution, batch, channels, x.dtype):
        raise ValueError(f"The Hopper kernel does not support this gradient: {reason}.")
    for name, array, (height, width) in (
        ("x", x, convolution.size),
        ("g", g, convolution.output_size),
    ):
        shape = (channels, height, round_up(width, 8), round_up(batch, 16))
        if array.shape != shape:
            raise ValueError(f"The packed {name} must have shape {shape}; got {array.shape}.")
    dtype = x.dtype
    if dtype == jnp.float32:
        # The kernel sums over the batch, so the three products are concatenated along it.
        (x, x_rest), (g, g_rest) = split(x), split(g)
        x = jnp.concatenate([x, x, x_rest], axis=-1)
        g = jnp.concatenate([g, g_rest, g], axis=-1)
    tiling = choose_tiling(convolution, x.shape[-1])
    assert tiling is not None, "a tiling for 16 images also tiles a multiple of 16"
    products = pair_products(x, g, convolution.padding[0][0], tiling, interpret=interpret)
    sums = _diagonal_sums(products, convolution, tiling)
    return jnp.transpose(sums, (1, 2, 0))[:, :, None].astype(dtype)


def _diagonal_sums(products: jax.Array, convolution: Convolution, tiling: Tiling) -> jax.Array:
    """Q, (C, S, R B, window), to dk, (C, KH, KW)."""
    kernel_height, kernel_width = convolution.kernel_size
    channels, columns = len(products), tiling.columns
    q = products.reshape(channels, tiling.shifts, tiling.rows, columns, tiling.window)
    q = reduce(jnp.add, (q[:, r : r + kernel_height, r] for r in range(tiling.rows)))
    # The (negative) padding removes the values before the kernel's columns. Line j then contains
    # these columns, starting at index j.
    before = convolution.padding[1][0] - tiling.lead
    length = columns - 1 + kernel_width
    zero = jnp.zeros((), q.dtype)
    keep = [(0, 0, 0)]
    q = lax.pad(q, zero, keep * 3 + [(before, length - before - tiling.window, 0)])
    # Reshaping the same elements into lines longer by one shifts line j to the left by j.
    q = q.reshape(channels, kernel_height, columns * length)
    q = lax.pad(q, zero, keep * 2 + [(0, columns, 0)])
    q = q.reshape(channels, kernel_height, columns, length + 1)
    return q[..., :kernel_width].sum(-2)
