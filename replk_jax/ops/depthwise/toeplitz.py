"""The convolution of a small map as one matrix for every channel: the full 2-D Toeplitz matrix.

A map of 7 x 7 is a vector of 49 values, and a kernel that covers it a matrix of 49 x 49: nearly
all of it is used, so a batched matrix product does little in vain.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Estimate, Properties
from replk_jax.ops.dtypes import accumulation_dtype

# The matrix has as many elements for a channel as this squared.
LARGEST_MAP = 144


NAME = "toeplitz"
PROPERTIES = Properties()


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """All but small maps."""
    largest = max(np.prod(convolution.size), np.prod(convolution.output_size))
    if largest > LARGEST_MAP:
        return f"toeplitz squares the map, and {largest} positions are more than {LARGEST_MAP}"
    return None


def estimate(convolution: Convolution) -> Estimate | None:
    """Best for kernels that cover most of a small map."""
    if max(convolution.kernel_size) >= 5 and max(convolution.size) <= 8:
        return Estimate(2, "one small matrix for every channel")
    return None


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """y[n, o, c] = sum_i T[c, o, i] x[n, i, c], over positions o and i."""
    y = _product("coi,nic->noc", _matrix(kernel, convolution), _flat(x), convolution)
    return y.reshape(x.shape[0], *convolution.output_size, x.shape[-1]).astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The product with the transposed matrix."""
    dx = _product("coi,noc->nic", _matrix(kernel, convolution), _flat(g), convolution)
    return dx.reshape(g.shape[0], *convolution.size, g.shape[-1]).astype(g.dtype)


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """The gradient of the matrix, summed over the elements that a tap fills."""
    matrix = _product("noc,nic->oic", _flat(g), _flat(x), convolution)
    channels = g.shape[-1]
    matrix = matrix.reshape(-1, channels)
    taps = _taps(convolution).ravel()
    kh, kw = convolution.kernel_size
    # The last row collects the pairs of positions that no tap joins.
    dk = jax.ops.segment_sum(matrix, taps, num_segments=kh * kw + 1)[:-1]
    return dk.reshape(kh, kw, 1, channels).astype(g.dtype)


def _matrix(kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """T, (C, OH OW, H W): the tap between two positions, or 0."""
    kh, kw, _, c = kernel.shape
    taps = jnp.concatenate([kernel.reshape(kh * kw, c), jnp.zeros((1, c), kernel.dtype)])
    return jnp.transpose(taps[_taps(convolution)], (2, 0, 1))


def _taps(convolution: Convolution) -> np.ndarray:
    """For every output and input position, (OH OW, H W), the number of the tap that joins them:
    u KW + v, or KH KW where none does."""
    joined, number = [], []
    for axis in (0, 1):
        before, _ = convolution.padding[axis]
        y = np.arange(convolution.output_size[axis]) * convolution.stride[axis] - before
        offset = np.arange(convolution.size[axis]) - y[:, None]
        tap, rest = np.divmod(offset, convolution.dilation[axis])
        joined.append((rest == 0) & (tap >= 0) & (tap < convolution.kernel_size[axis]))
        number.append(tap)
    (rows, columns), (row, column) = joined, number
    kh, kw = convolution.kernel_size
    both = rows[:, None, :, None] & columns[None, :, None, :]
    number = row[:, None, :, None] * kw + column[None, :, None, :]
    positions = np.prod(convolution.output_size), np.prod(convolution.size)
    return np.where(both, number, kh * kw).reshape(positions)


def _flat(x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, H W, C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h * w, c)


def _product(subscripts: str, a: jax.Array, b: jax.Array, convolution: Convolution) -> jax.Array:
    """Sums in float32 at least."""
    return jnp.einsum(
        subscripts,
        a,
        b,
        precision=convolution.product_precision(a.dtype),
        preferred_element_type=accumulation_dtype(a.dtype),
    )
