"""The gradient with respect to a large depthwise kernel, on the matrix units of Hopper.

For every channel the gradient is a sum over the batch of shifted products,

    dk[u, v] = sum g[n, i, j] x[n, i + u - p, j + v - q]        over n, i and j.

The sum over the batch is a matrix product of a row of g and a row of x. It holds the products of
all pairs of columns, those of a kernel column v on one diagonal. Pairs of rows that are equally
far apart belong to the same kernel row, and pairs of columns that are equally far apart to the
same kernel column, so many of these matrix products add up in place:

    Q[s, r, j, a] = sum g[n, R t + r, B b + j] x[n, R t + s - p, B b + a - lead]   over n, t and b

with tiles of g of R rows and B columns, r < R, j < B, the t-th from the top and b-th from the
left. The Pallas kernel of `pair_products` computes Q; what remains is

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
    """Why the kernel cannot compute this gradient, or None if it can.

    Args:
      convolution: the convolution.
      batch: N; None or a symbol where it is not known.
      channels: C.
      dtype: of all arrays.
    """
    if reason := always_unsupported_reason(convolution, batch, channels, dtype):
        return reason
    # Reading beyond the width of a map gives the zeros above and below it, except in a map of
    # one tile of 8 columns, whose index the copy drops.
    if min(convolution.size[1], convolution.output_size[1]) <= 8:
        return (
            "its kernels are for maps of 9 and more columns, "
            f"not of {convolution.size} to {convolution.output_size}"
        )
    if choose_tiling(convolution, 16) is None:
        return (
            f"kernels of {convolution.kernel_size} for maps of {convolution.size} exceed "
            "the registers or the shared memory"
        )
    return None


def kernel_gradient(
    x: jax.Array, g: jax.Array, convolution: Convolution, *, interpret: Any = False
) -> jax.Array:
    """The gradient with respect to the kernel.

    16-bit types are multiplied exactly and summed in float32. float32 is split into two bfloat16
    parts, of whose four products the smallest is left out.

    Args:
      x: the input, (N, H, W, C), bfloat16, float16 or float32.
      g: the gradient with respect to the output, (N, OH, OW, C), of the same dtype.
      convolution: one for which `unsupported_gradient_reason` gives none.
      interpret: False compiles for the GPU; parameters of Pallas' GPU interpreter run the
        kernel on the CPU.

    Returns:
      (KH, KW, 1, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_gradient_reason` gives.
    """
    multiple = min(64, max(16, 1 << (len(x) - 1).bit_length()))
    x, g = pack(x, multiple), pack(g, multiple)
    return kernel_gradient_packed(x, g, convolution, interpret=interpret)


def kernel_gradient_packed(
    x: jax.Array, g: jax.Array, convolution: Convolution, *, interpret: Any = False
) -> jax.Array:
    """The gradient with respect to the kernel, of operands in the packed layout.

    Args:
      x: the input, (C, H, W', N') as `pack` makes it: the columns behind the map are zero.
      g: the gradient with respect to the output, (C, OH, OW', N'), likewise.
      convolution, interpret: as in `kernel_gradient`.

    Returns:
      (KH, KW, 1, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_gradient_reason` gives, or for shapes that do
        not belong together.
    """
    # Pallas is imported with the first gradient: the package must work where it cannot be.
    from replk_jax.ops.depthwise.mosaic_gpu.pair_products import pair_products

    channels, _, _, batch = x.shape
    if reason := unsupported_gradient_reason(convolution, batch, channels, x.dtype):
        raise ValueError(f"This gradient has no kernel: {reason}.")
    for name, array, (height, width) in (
        ("x", x, convolution.size),
        ("g", g, convolution.output_size),
    ):
        shape = (channels, height, round_up(width, 8), round_up(batch, 16))
        if array.shape != shape:
            raise ValueError(f"The packed {name} should be {shape}, but is {array.shape}.")
    dtype = x.dtype
    if dtype == jnp.float32:
        # The kernel sums over the images, and so over the three products if they pose as such.
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
    # Line j holds the kernel's columns from j on, after the padding has cut off what precedes.
    before = convolution.padding[1][0] - tiling.lead
    length = columns - 1 + kernel_width
    zero = jnp.zeros((), q.dtype)
    keep = [(0, 0, 0)]
    q = lax.pad(q, zero, keep * 3 + [(before, length - before - tiling.window, 0)])
    # Lines that are longer by one, filled with the same numbers, shift line j to the left by j.
    q = q.reshape(channels, kernel_height, columns * length)
    q = lax.pad(q, zero, keep * 2 + [(0, columns, 0)])
    q = q.reshape(channels, kernel_height, columns, length + 1)
    return q[..., :kernel_width].sum(-2)
