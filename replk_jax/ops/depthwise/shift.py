"""The convolution as a sum of shifted feature maps, one per tap, for small kernels on CPUs.

XLA fuses the sum into one vectorised loop over the result, which reads the input from cache.
Automatic differentiation would not produce such sums, so each direction is written as one.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Properties
from replk_jax.ops.dtypes import accumulation_dtype

# Every tap is a term in the compiled program.
MAX_TAPS = 100


NAME = "shift"
PROPERTIES = Properties()


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """Empty inputs, empty results and kernels of many taps are unsupported."""
    if 0 in (*convolution.size, *convolution.output_size):
        return "the input or the result is empty"
    taps = convolution.kernel_size[0] * convolution.kernel_size[1]
    if taps > MAX_TAPS:
        return f"shift compiles a term for every tap, and {taps} are more than {MAX_TAPS}"
    return None


def estimate(convolution: Convolution) -> None:
    """None: it is fast only on CPUs, for which the package has a table."""


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """y[i] = sum_u x[s i + d u - p] k[u], for rows and columns."""
    taps = _taps(kernel)
    (kh, kw), (dh, dw) = convolution.kernel_size, convolution.dilation
    if convolution.stride == (1, 1):
        rows, columns = convolution.padding
        borders = ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))
        padded = lax.pad(x, jnp.zeros((), x.dtype), borders)

        def window(u, v):
            return _window(padded, dh * u, dw * v, convolution.output_size)

    else:

        def window(u, v):
            return _bordered_window(x, u, v, convolution)

    terms = (_accumulated(window(u, v)) * taps[u, v] for u in range(kh) for v in range(kw))
    return reduce(jnp.add, terms).astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """dx[t] = sum of g[i] k[u] where s i + d u - p = t.

    All input positions with the same residue modulo the stride are read by the same taps at the
    same shifts. So each of the s x s phases of dx is a convolution of stride 1.
    """
    if convolution.is_dense:
        return forward(g, kernel[::-1, ::-1], convolution.transposed())
    taps = _taps(kernel)
    (sh, sw), (height, width) = convolution.stride, convolution.size
    rows, columns = (_phases(convolution, axis) for axis in (0, 1))
    size = -(-height // sh), -(-width // sw)
    # Every phase reads windows of one padded array.
    (top, bottom), (left, right) = (
        _margins(phases, count, extent)
        for phases, count, extent in zip(
            (rows, columns), size, convolution.output_size, strict=True
        )
    )
    g = jnp.pad(g, ((0, 0), (top, bottom), (left, right), (0, 0)))
    zero = jnp.zeros((g.shape[0], *size, g.shape[-1]), taps.dtype)

    def phase(row_taps, column_taps):
        terms = [
            _accumulated(_window(g, top + i, left + j, size)) * taps[u, v]
            for u, i in row_taps
            for v, j in column_taps
        ]
        return sum(terms, start=zero).astype(g.dtype)

    dx = jnp.stack([jnp.stack([phase(r, c) for c in columns], axis=3) for r in rows], axis=2)
    dx = dx.reshape(dx.shape[0], size[0] * sh, size[1] * sw, dx.shape[-1])
    return dx[:, :height, :width]


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """dk[u] = sum_i x[s i + d u - p] g[i].

    A loop over the output rows adds the products of each row elementwise to one array per tap.
    Only the last step is a reduction, because XLA reduces slowly on CPUs.
    """
    (sh, sw), (oh, _) = convolution.stride, convolution.output_size
    (dh, _), (kh, kw) = convolution.dilation, convolution.kernel_size
    height, top = convolution.size[0], convolution.padding[0][0]
    n, _, _, c = x.shape
    reached = [_reached(convolution, 1, v) for v in range(kw)]

    def add_row(i, sums):
        g_row = lax.dynamic_slice_in_dim(g, i, 1, axis=1)
        new = []
        for u in range(kh):
            t = sh * i + dh * u - top
            x_row = lax.dynamic_slice_in_dim(x, jnp.clip(t, 0, height - 1), 1, axis=1)
            factor = _accumulated(jnp.where((t >= 0) & (t < height), g_row, 0))
            for v, (outputs, start, stop) in enumerate(reached):
                window = lax.slice(x_row, (0, 0, start, 0), (n, 1, stop, c), (1, 1, sw, 1))
                product = _accumulated(window) * factor[:, :, outputs.start : outputs.stop]
                new.append(sums[u * kw + v] + product)
        return new

    sums = lax.fori_loop(1, oh, add_row, add_row(0, [0] * (kh * kw)))
    dk = jnp.stack([total.sum((0, 1, 2)) for total in sums])
    return dk.reshape(kh, kw, 1, c).astype(g.dtype)


def _window(x: jax.Array, top: int, left: int, size: tuple[int, int]) -> jax.Array:
    """The part (N, *size, C) of x whose first position is (top, left)."""
    n, _, _, c = x.shape
    return lax.slice(x, (0, top, left, 0), (n, top + size[0], left + size[1], c))


def _bordered_window(x: jax.Array, u: int, v: int, convolution: Convolution) -> jax.Array:
    """The input positions (N, OH, OW, C) that tap (u, v) reads, with zeros outside of x.

    It slices x before it pads: with a stride, padding all of x would cost more than the reads.
    """
    (rows, top, bottom), (columns, left, right) = (
        _reached(convolution, axis, tap) for axis, tap in enumerate((u, v))
    )
    (oh, ow), (n, _, _, c) = convolution.output_size, x.shape
    inside = lax.slice(x, (0, top, left, 0), (n, bottom, right, c), (1, *convolution.stride, 1))
    borders = (rows.start, oh - rows.stop, 0), (columns.start, ow - columns.stop, 0)
    return lax.pad(inside, jnp.zeros((), x.dtype), ((0, 0, 0), *borders, (0, 0, 0)))


def _reached(convolution: Convolution, axis: int, tap: int) -> tuple[range, int, int]:
    """The output positions at which a tap reads inside the input, and what it reads there.

    Returns:
      The output positions, the first input position, and the last input position plus one.
    """
    step, size = convolution.stride[axis], convolution.size[axis]
    offset = tap * convolution.dilation[axis] - convolution.padding[axis][0]
    outputs = range(convolution.output_size[axis])[
        max(0, -(offset // step)) : max(0, (size - 1 - offset) // step + 1)
    ]
    if not outputs:
        return range(0), 0, 0
    return outputs, step * outputs[0] + offset, step * outputs[-1] + offset + 1


def _phases(convolution: Convolution, axis: int) -> list[list[tuple[int, int]]]:
    """For every residue r modulo the stride: the pairs (u, i - t) of taps and offsets.

    Tap u at output position i reads the input position s t + r.
    """
    step, dilation = convolution.stride[axis], convolution.dilation[axis]
    before, _ = convolution.padding[axis]
    phases = []
    for residue in range(step):
        reached = [
            (u, residue + before - dilation * u) for u in range(convolution.kernel_size[axis])
        ]
        phases.append([(u, offset // step) for u, offset in reached if offset % step == 0])
    return phases


def _margins(phases: list[list[tuple[int, int]]], size: int, extent: int) -> tuple[int, int]:
    """The padding (before, after) of `extent` values for reads of `size` values at all offsets."""
    offsets = [offset for phase in phases for _, offset in phase]
    return max(0, -min(offsets)), max(0, size + max(offsets) - extent)


def _taps(kernel: jax.Array) -> jax.Array:
    """(KH, KW, 1, C) to (KH, KW, 1, 1, 1, C), so that [u, v] broadcasts against (N, H, W, C)."""
    return _accumulated(kernel)[:, :, None, None]


def _accumulated(array: jax.Array) -> jax.Array:
    """The array in the dtype in which products are accumulated."""
    return array.astype(accumulation_dtype(array.dtype))
