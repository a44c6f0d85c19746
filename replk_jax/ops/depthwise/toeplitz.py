"""The convolution of a small feature map as one 2-D Toeplitz matrix per channel.

A 7 x 7 feature map is a vector of 49 values, and a kernel is a 49 x 49 matrix. If the kernel covers
the feature map, few elements of the matrix are zero, so a batched matrix product wastes little.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Estimate, Properties
from replk_jax.ops.dtypes import accumulation_dtype

# Positions of a feature map. The matrix of a channel has the square of this many elements.
MAX_POSITIONS = 144


NAME = "toeplitz"
PROPERTIES = Properties()


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """Only small feature maps are supported."""
    largest = max(math.prod(convolution.size), math.prod(convolution.output_size))
    if largest > MAX_POSITIONS:
        return (
            "the matrix of toeplitz squares the feature map, and "
            f"{largest} positions are more than {MAX_POSITIONS}"
        )
    return None


def estimate(convolution: Convolution) -> Estimate | None:
    """The fastest for kernels that cover most of a small feature map."""
    if max(convolution.kernel_size) >= 5 and max(convolution.size) <= 8:
        return Estimate(2, "one small matrix per channel")
    return None


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """y[n, o, c] = sum_i T[c, o, i] x[n, i, c], for output positions o and input positions i."""
    y = _product("coi,nic->noc", _matrix(kernel, convolution), _flat(x), convolution)
    return y.reshape(x.shape[0], *convolution.output_size, x.shape[-1]).astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The product with the transposed matrix."""
    dx = _product("coi,noc->nic", _matrix(kernel, convolution), _flat(g), convolution)
    return dx.reshape(g.shape[0], *convolution.size, g.shape[-1]).astype(g.dtype)


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """The gradient of the matrix, summed over the elements that belong to the same tap."""
    matrix = _product("noc,nic->oic", _flat(g), _flat(x), convolution)
    channels = g.shape[-1]
    matrix = matrix.reshape(-1, channels)
    taps = _taps(convolution).ravel()
    kh, kw = convolution.kernel_size
    # The last segment collects the pairs of positions that no tap connects.
    dk = jax.ops.segment_sum(matrix, taps, num_segments=kh * kw + 1)[:-1]
    return dk.reshape(kh, kw, 1, channels).astype(g.dtype)


def _matrix(kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """T, (C, OH OW, H W): the tap that connects two positions, or 0."""
    kh, kw, _, c = kernel.shape
    taps = jnp.concatenate([kernel.reshape(kh * kw, c), jnp.zeros((1, c), kernel.dtype)])
    return jnp.transpose(taps[_taps(convolution)], (2, 0, 1))


def _taps(convolution: Convolution) -> np.ndarray:
    """The index u KW + v of the tap that connects an output and an input position, (OH OW, H W).

    KH KW where none does.
    """
    connected, index = [], []
    for axis in (0, 1):
        before, _ = convolution.padding[axis]
        y = np.arange(convolution.output_size[axis]) * convolution.stride[axis] - before
        offset = np.arange(convolution.size[axis]) - y[:, None]
        tap, rest = np.divmod(offset, convolution.dilation[axis])
        connected.append((rest == 0) & (tap >= 0) & (tap < convolution.kernel_size[axis]))
        index.append(tap)
    (rows, columns), (row, column) = connected, index
    kh, kw = convolution.kernel_size
    both = rows[:, None, :, None] & columns[None, :, None, :]
    taps = row[:, None, :, None] * kw + column[None, :, None, :]
    positions = math.prod(convolution.output_size), math.prod(convolution.size)
    return np.where(both, taps, kh * kw).reshape(positions)


def _flat(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, H W, C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h * w, c)


def _product(subscripts: str, a: jax.Array, b: jax.Array, convolution: Convolution) -> jax.Array:
    """`jnp.einsum` that accumulates in at least float32."""
    return jnp.einsum(
        subscripts,
        a,
        b,
        precision=convolution.product_precision(a.dtype),
        preferred_element_type=accumulation_dtype(a.dtype),
    )
