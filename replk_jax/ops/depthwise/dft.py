"""The convolution as dense matrix products with short Fourier matrices, for any device.

With real basis functions b in {cos, sin} of the m odd frequencies a = (2 a' + 1) pi / n, n = 2 m,

    x^[a, b] = sum_t b(a t) x[t],

a correlation becomes a product of spectra at every frequency, and the way back is the
transposed matrix. The odd frequencies belong to signals that change sign after n steps, and
they have neither a constant nor an alternating member, so all spectra are plain (cos, sin)
pairs. In two dimensions the transform is applied along the rows, then along the columns, and
the product algebra is that of two independent imaginary units. Everything is real.

n needs no fast length, only to be long enough that what wraps around is not read; and
the matrices are sampled just where data are and where results are wanted, which covers every
padding, stride and dilation. Arrays stay (N, H, W, C) throughout: batch and channels are never
merged with anything, so a mesh may shard either.

A transform costs 2 m multiplications a value, whatever the kernel's size, and matrix
products run near a device's peak. Spectra are up to four times as large as a map, and the matrices
are repeated for every row: the gradient of one 200 x 336 map of 128 channels takes 0.4 GB.

Every result is a sum over the whole spectrum, so its rounding error is in proportion to the largest
value of its channel, and not to the values under the kernel: about 3e-7 of it in float32. Where
this matters, `precision="highest"` makes `dispatch` choose another implementation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Estimate, Properties
from replk_jax.ops.dtypes import accumulation_dtype

NAME = "dft"
PROPERTIES = Properties(error_scales_with_largest=True)


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """Maps and results without elements."""
    if 0 in (*convolution.size, *convolution.output_size):
        return "the map or the result has no elements"
    return None


def estimate(convolution: Convolution) -> Estimate | None:
    """Best for large kernels without stride and dilation."""
    if max(convolution.kernel_size) >= 9 and convolution.is_dense:
        return Estimate(1, "its matrix products do fewer operations")
    return None


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The spectra of x and k, multiplied, sampled at the output's positions."""
    on_x, on_k, on_y = _transforms(convolution, x.dtype)
    products = _correlation(on_x.spectrum(x), on_k.spectrum(kernel[None, :, :, 0]))
    return on_y.values(products).astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The same with g and k, sampled at the input's positions."""
    on_x, on_k, on_y = _transforms(convolution, g.dtype)
    products = _convolution(on_y.spectrum(g), on_k.spectrum(kernel[None, :, :, 0]))
    return on_x.values(products).astype(g.dtype)


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """The same with x and g, summed over the batch, sampled at the kernel's taps."""
    on_x, on_k, on_y = _transforms(convolution, x.dtype)
    # Not the spectrum of the forward pass: that would have to be kept until now.
    x = lax.optimization_barrier(x)
    products = _correlation(on_x.spectrum(x), on_y.spectrum(g))
    return on_k.values_summed(products)[0, :, :, None].astype(g.dtype)


@dataclasses.dataclass(frozen=True)
class _Transform:
    """The two-dimensional transform of values at given positions.

    Attributes:
      rows: b(a t) for the rows' basis functions and positions, (2 m, H).
      columns: the same for the columns, (2 m', W).
      precision: of the products.
    """

    rows: np.ndarray
    columns: np.ndarray
    precision: lax.Precision

    def spectrum(self, values: jax.Array) -> jax.Array:
        """(N, H, W, C) to (N, 2, m, 2, m', C), in float32 or float64.

        Columns come last, and first on the way back: on a CPU twice as fast as the reverse.
        """
        values = values.astype(accumulation_dtype(values.dtype))
        n, _, _, c = values.shape
        spectrum = self._along_columns(self.columns, self._along_rows(self.rows, values))
        return spectrum.reshape(n, 2, self.rows.shape[0] // 2, 2, self.columns.shape[0] // 2, c)

    def values(self, spectrum: jax.Array) -> jax.Array:
        """(N, 2, m, 2, m', C) to (N, H, W, C): the inverse, as far as results are wanted."""
        rows, columns = self._inverse()
        return self._along_rows(rows, self._along_columns(columns, _merged(spectrum)))

    def values_summed(self, spectrum: jax.Array) -> jax.Array:
        """The same summed over N, (1, H, W, C). The sum is part of the last matrix product,
        which is many times faster than a reduction of its own."""
        rows, columns = self._inverse()
        partly = self._along_columns(columns, _merged(spectrum))
        batched = jnp.broadcast_to(rows.astype(partly.dtype), (partly.shape[0], *rows.shape))
        dimensions = (((0, 2), (0, 1)), ((), ()))
        return lax.dot_general(batched, partly, dimensions, precision=self.precision)[None]

    def _inverse(self) -> tuple[np.ndarray, np.ndarray]:
        """The matrices from frequencies to positions, (H, 2 m) and (W, 2 m')."""
        rows, columns = (basis.T * (2 / basis.shape[0]) for basis in (self.rows, self.columns))
        return rows, columns

    def _along_rows(self, matrix: np.ndarray, values: jax.Array) -> jax.Array:
        """(J, H) times (N, H, W, C). The matrix is given the batch's dimension, since without
        it XLA transposes the values, which takes longer than the product."""
        batched = jnp.broadcast_to(matrix.astype(values.dtype), (values.shape[0], *matrix.shape))
        dimensions = (((2,), (1,)), ((0,), (0,)))
        return lax.dot_general(batched, values, dimensions, precision=self.precision)

    def _along_columns(self, matrix: np.ndarray, values: jax.Array) -> jax.Array:
        """(J, W) times (N, H, W, C), in the same manner."""
        batched = jnp.broadcast_to(matrix.astype(values.dtype), (*values.shape[:2], *matrix.shape))
        dimensions = (((3,), (2,)), ((0, 1), (0, 1)))
        return lax.dot_general(batched, values, dimensions, precision=self.precision)


def _merged(spectrum: jax.Array) -> jax.Array:
    """(N, 2, m, 2, m', C) to (N, 2 m, 2 m', C)."""
    n, _, m, _, m_columns, c = spectrum.shape
    return spectrum.reshape(n, 2 * m, 2 * m_columns, c)


def _transforms(
    convolution: Convolution, dtype: DTypeLike
) -> tuple[_Transform, _Transform, _Transform]:
    """The transforms at the positions of the input, of the kernel's taps and of the output.

    Output position y meets tap k at input position x = y + k. Frequencies a = (2 a' + 1) pi / n
    do not distinguish x from y + k + n, so n exceeds every difference that occurs.
    """
    bases = []
    for axis in (0, 1):
        size, taps = convolution.size[axis], convolution.kernel_size[axis]
        before, _ = convolution.padding[axis]
        x = np.arange(size)
        k = np.arange(taps) * convolution.dilation[axis]
        y = np.arange(convolution.output_size[axis]) * convolution.stride[axis] - before
        differences = y[-1] + k[-1] - x[0], x[-1] - y[0] - k[0]
        m = max(differences) // 2 + 1
        frequencies = (2 * np.arange(m) + 1) * np.pi / (2 * m)
        angles = [frequencies[:, None] * positions for positions in (x, k, y)]
        bases.append([np.concatenate([np.cos(a), np.sin(a)]) for a in angles])
    rows, columns = bases
    precision = convolution.product_precision(dtype)
    on_x, on_k, on_y = (
        _Transform(on_rows, on_columns, precision)
        for on_rows, on_columns in zip(rows, columns, strict=True)
    )
    return on_x, on_k, on_y


def _correlation(x: jax.Array, k: jax.Array) -> jax.Array:
    """x^ times the conjugate of k^, for both imaginary units; spectra (N, 2, m, 2, m', C)."""
    return _multiply(x, k, sign=1)


def _convolution(x: jax.Array, k: jax.Array) -> jax.Array:
    """x^ times k^."""
    return _multiply(x, k, sign=-1)


def _multiply(x: jax.Array, k: jax.Array, sign: int) -> jax.Array:
    """(c + i s) (c' -+ i s') = c c' +- s s' + i (s c' -+ c s'), for both units at once.

    Written with reversed operands: a concatenation of four results is not vectorised by XLA.
    """
    signs = jnp.array([sign, -sign], x.dtype)
    on_rows, on_columns = signs.reshape(1, 2, 1, 1, 1, 1), signs.reshape(1, 1, 1, 2, 1, 1)
    kc, ks = k[:, :1], k[:, 1:]

    def by_columns(x, k):
        return x * k[:, :, :, :1] + on_columns * x[:, :, :, ::-1] * k[:, :, :, 1:]

    return by_columns(x, kc) + on_rows * by_columns(x[:, ::-1], ks)
