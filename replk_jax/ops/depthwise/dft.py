"""The convolution as dense matrix products with short Fourier matrices, for any device.

The transform uses the real basis functions b in {cos, sin} at the m odd frequencies
a = (2 a' + 1) pi / n, n = 2 m:

    x^[a, b] = sum_t b(a t) x[t].

A correlation becomes a product of spectra at every frequency, and the inverse transform is the
transposed matrix. The odd frequencies are those of signals that change sign after n steps. None of
them is constant or alternating, so every spectrum consists of (cos, sin) pairs. In two dimensions
the transform is applied along the rows, then along the columns. The product of spectra then has
two independent imaginary units. All arithmetic is real.

n need not be a fast FFT length, only large enough that no wrapped result is used. The matrices are
sampled at the positions of the data and of the required results, which covers every padding,
stride and dilation. Batch and channels remain separate dimensions, so both may be sharded.

A transform costs 2 m multiplications per value for any kernel size, and matrix products run near
the peak of a device. A spectrum is up to four times as large as its feature map, and the matrices
are repeated for every row: the gradient of one 200 x 336 image of 128 channels takes 0.4 GB.

Every result is a sum over the whole spectrum. So its rounding error is proportional to the largest
value of its channel, about 3e-7 of it in float32, rather than to the values under the kernel. With
`precision="highest"`, `dispatch` chooses another implementation.
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
    """Empty inputs and empty results are unsupported."""
    if 0 in (*convolution.size, *convolution.output_size):
        return "the input or the result is empty"
    return None


def estimate(convolution: Convolution) -> Estimate | None:
    """The fastest for large kernels without stride and dilation."""
    if max(convolution.kernel_size) >= 9 and convolution.is_dense:
        return Estimate(1, "its matrix products do fewer operations")
    return None


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The product of the spectra of x and k, transformed to the positions of the output."""
    on_x, on_k, on_y = _transforms(convolution, x.dtype)
    products = _correlation(on_x.spectrum(x), on_k.spectrum(kernel[None, :, :, 0]))
    return on_y.values(products).astype(x.dtype)


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """The product of the spectra of g and k, transformed to the positions of the input."""
    on_x, on_k, on_y = _transforms(convolution, g.dtype)
    products = _convolution(on_y.spectrum(g), on_k.spectrum(kernel[None, :, :, 0]))
    return on_x.values(products).astype(g.dtype)


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """The product of the spectra of x and g, summed over the batch, transformed to the taps."""
    on_x, on_k, on_y = _transforms(convolution, x.dtype)
    # Prevents XLA from reusing the spectrum of the forward pass, and so from storing it until now.
    x = lax.optimization_barrier(x)
    products = _correlation(on_x.spectrum(x), on_y.spectrum(g))
    return on_k.values_summed(products)[0, :, :, None].astype(g.dtype)


@dataclasses.dataclass(frozen=True)
class _Transform:
    """The two-dimensional transform of values at given positions.

    Attributes:
      rows: b(a t), the basis functions of the rows at their positions, (2 m, H).
      columns: those of the columns, (2 m', W).
      precision: of the products.
    """

    rows: np.ndarray
    columns: np.ndarray
    precision: lax.Precision

    def spectrum(self, values: jax.Array) -> jax.Array:
        """(N, H, W, C) to (N, 2, m, 2, m', C), in float32 or float64.

        The columns are transformed last, and inverted first. On a CPU this is twice as fast as the
        opposite order.
        """
        values = values.astype(accumulation_dtype(values.dtype))
        n, _, _, c = values.shape
        spectrum = self._along_columns(self.columns, self._along_rows(self.rows, values))
        return spectrum.reshape(n, 2, self.rows.shape[0] // 2, 2, self.columns.shape[0] // 2, c)

    def values(self, spectrum: jax.Array) -> jax.Array:
        """(N, 2, m, 2, m', C) to (N, H, W, C): the inverse transform at the positions."""
        rows, columns = self._inverse()
        return self._along_rows(rows, self._along_columns(columns, _merged(spectrum)))

    def values_summed(self, spectrum: jax.Array) -> jax.Array:
        """`values` summed over N: (N, 2, m, 2, m', C) to (1, H, W, C).

        The last matrix product includes the sum: a separate reduction is many times slower.
        """
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
        """(J, H) times (N, H, W, C), to (N, J, W, C).

        The matrix is broadcast over the batch. Otherwise XLA transposes the values, which takes
        longer than the product.
        """
        batched = jnp.broadcast_to(matrix.astype(values.dtype), (values.shape[0], *matrix.shape))
        dimensions = (((2,), (1,)), ((0,), (0,)))
        return lax.dot_general(batched, values, dimensions, precision=self.precision)

    def _along_columns(self, matrix: np.ndarray, values: jax.Array) -> jax.Array:
        """(J, W) times (N, H, W, C), to (N, H, J, C), with the same broadcast."""
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
    """The transforms at the positions of the input, the taps and the output.

    Tap k reads the input position x = y + k for the output position y. The frequencies
    a = (2 a' + 1) pi / n do not distinguish x from y + k + n, so n exceeds every difference
    x - y - k.
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
    """x^ times the conjugate of k^ in both imaginary units; spectra (N, 2, m, 2, m', C)."""
    return _multiply(x, k, sign=1)


def _convolution(x: jax.Array, k: jax.Array) -> jax.Array:
    """x^ times k^."""
    return _multiply(x, k, sign=-1)


def _multiply(x: jax.Array, k: jax.Array, sign: int) -> jax.Array:
    """(c + i s) (c' -+ i s') = c c' +- s s' + i (s c' -+ c s'), in both imaginary units.

    Implemented with reversed operands: XLA does not vectorise a concatenation of four results.
    """
    signs = jnp.array([sign, -sign], x.dtype)
    on_rows, on_columns = signs.reshape(1, 2, 1, 1, 1, 1), signs.reshape(1, 1, 1, 2, 1, 1)
    kc, ks = k[:, :1], k[:, 1:]

    def by_columns(x, k):
        return x * k[:, :, :, :1] + on_columns * x[:, :, :, ::-1] * k[:, :, :, 1:]

    return by_columns(x, kc) + on_rows * by_columns(x[:, ::-1], ks)
