"""The convolution as a sum over the kernel's taps of shifted maps, for small kernels on CPUs.

XLA turns the sum into one vectorised loop over the result, which reads the map from cache. Its
derivatives under autodiff are not of that form, so each is written in it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.convolution import Convolution

# Every tap is a term in the compiled program.
MOST_TAPS = 200


def refuses(convolution: Convolution, batch: int | None, channels: int, dtype) -> str | None:
    """Maps of unknown size, results without elements, and kernels of very many taps."""
    if not convolution.has_known_size:
        return f"shift cuts slices of one map size, and {convolution.size} is not known"
    if 0 in convolution.output_size:
        return "the result has no elements"
    taps = convolution.kernel_size[0] * convolution.kernel_size[1]
    if taps > MOST_TAPS:
        return f"shift compiles a term for every tap, and {taps} are more than {MOST_TAPS}"
    return None


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """y[s i] = sum_u x[s i + d u - p] k[u], for rows and columns."""
    (sh, sw), (oh, ow) = convolution.stride, convolution.output_size
    (dh, dw), kernel = convolution.dilation, _accumulated(kernel)
    x = _padded(x, convolution)
    y = sum(
        _window(x, dh * u, dw * v, (sh, sw), (oh, ow)) * kernel[u, v]
        for u in range(kernel.shape[0])
        for v in range(kernel.shape[1])
    )
    return y.astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """dx[t] = sum of g[i] k[u] where s i + d u - p = t.

    Input positions of one residue modulo the stride meet the same taps, at shifts that are the
    same for all of them: each of the s x s phases of dx is a convolution of stride 1.
    """
    dtype, kernel = g.dtype, _accumulated(kernel)
    (sh, sw), (height, width) = convolution.stride, convolution.size
    rows, columns = (_phases(convolution, axis) for axis in (0, 1))
    # Every phase reads a window of one map, far enough beyond its borders on all sides.
    (top, bottom), (left, right) = (
        _margins(phases, -(-size // step), extent)
        for phases, size, step, extent in zip(
            (rows, columns), (height, width), (sh, sw), convolution.output_size, strict=True
        )
    )
    size = -(-height // sh), -(-width // sw)
    g = _materialised(jnp.pad(g, ((0, 0), (top, bottom), (left, right), (0, 0))))
    zero = jnp.zeros((g.shape[0], *size, g.shape[-1]), kernel.dtype)

    def phase(row_taps, column_taps):
        terms = [
            _window(g, top + i, left + j, (1, 1), size) * kernel[u, v]
            for u, i in row_taps
            for v, j in column_taps
        ]
        return sum(terms, start=zero).astype(dtype)

    phases = [[phase(r, c) for c in columns] for r in rows]
    if (sh, sw) == (1, 1):
        return phases[0][0]
    dx = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    dx = dx.reshape(dx.shape[0], size[0] * sh, size[1] * sw, dx.shape[-1])
    return dx[:, :height, :width]


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """dk[u] = sum_i x[s i + d u - p] g[i].

    A loop over the output's rows adds products, column by column, to one array for every
    column of the kernel; only the last step is a reduction, which XLA does slowly on CPUs.
    """
    dtype = g.dtype
    (sh, sw), (oh, ow) = convolution.stride, convolution.output_size
    (dh, dw), (kh, kw) = convolution.dilation, convolution.kernel_size
    x = _padded(x, convolution)

    def add_row(i, sums):
        row = lax.dynamic_slice_in_dim(g, i, 1, axis=1)
        rows = lax.dynamic_slice_in_dim(x, sh * i, dh * (kh - 1) + 1, axis=1)
        return [
            total + _accumulated(_window(rows, 0, dw * v, (dh, sw), (kh, ow))) * row
            for v, total in enumerate(sums)
        ]

    sums = lax.fori_loop(1, oh, add_row, add_row(0, [0] * kw))
    return jnp.stack([total.sum((0, 2)) for total in sums], axis=1)[:, :, None].astype(dtype)


def _padded(x: jax.Array, convolution: Convolution) -> jax.Array:
    """x with its border of zeros, as an array of its own: in the loop over the result, the
    border would be a condition on every element read."""
    rows, columns = convolution.padding
    borders = ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))
    return _materialised(lax.pad(x, jnp.zeros((), x.dtype), borders))


_materialised = lax.optimization_barrier


def _window(
    x: jax.Array, top: int, left: int, stride: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
    """(N, *size, C) out of x, from (top, left) in steps of `stride`."""
    n, _, _, c = x.shape
    ends = [a + (k - 1) * s + 1 for a, k, s in zip((top, left), size, stride, strict=True)]
    return lax.slice(x, (0, top, left, 0), (n, *ends, c), (1, *stride, 1))


def _phases(convolution: Convolution, axis: int) -> list[list[tuple[int, int]]]:
    """For every residue r of input positions modulo the stride: the taps u that it meets, and
    how far the output position i of tap u is from t, for the input position s t + r."""
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
    """Zeros needed before and after `extent` values to read `size` of them at every offset."""
    offsets = [offset for phase in phases for _, offset in phase]
    return max(0, -min(offsets)), max(0, size + max(offsets) - extent)


def _accumulated(array: jax.Array) -> jax.Array:
    """16-bit numbers as float32, in which products are summed."""
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
