"""Bilinear resizing and adaptive average pooling, as products with small matrices.

Both are linear and separable: an interpolation matrix for the rows and one for the columns. The
matrices are computed in float64 on the host, and are exactly those of PyTorch's `interpolate`
(bilinear, without antialiasing) and `AdaptiveAvgPool2d`. `jax.image.resize` differs: it smooths
images that shrink, and has no `align_corners`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.dtypes import accumulation_dtype


def linear_taps(
    output: int, size: int, align_corners: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours and weights that resize an axis by linear interpolation.

    Position i of the result reads position (i + 0.5) size / output - 0.5, at least 0, or with
    `align_corners` i (size - 1) / (output - 1), which is 0 for one position. The upper neighbour
    of the last position is that position itself.

    Args:
      output: size of the result.
      size: size of the axis.
      align_corners: whether the first and last positions of both coincide.

    Returns:
      The lower and the upper neighbour, int64 (output,), and the weight of the upper one, float64
      (output,); that of the lower one is 1 minus it.

    Raises:
      ValueError: a size below 1.
    """
    _check_sizes(output, size)
    positions = np.arange(output, dtype=np.float64)
    if align_corners:
        source = positions * ((size - 1) / (output - 1) if output > 1 else 0.0)
    else:
        source = np.maximum((positions + 0.5) * (size / output) - 0.5, 0.0)
    lower = np.minimum(source.astype(np.int64), size - 1)
    return lower, np.minimum(lower + 1, size - 1), source - lower


@functools.lru_cache(maxsize=1024)
def bilinear_matrix(output: int, size: int, align_corners: bool = False) -> np.ndarray:
    """The matrix that resizes an axis by linear interpolation; see `linear_taps`.

    Args:
      output: size of the result.
      size: size of the axis.
      align_corners: whether the first and last positions of both coincide.

    Returns:
      Float32 (output, size), read-only; the sum of each row is 1.

    Raises:
      ValueError: a size below 1.
    """
    lower, upper, fraction = linear_taps(output, size, align_corners)
    matrix = np.zeros((output, size), np.float64)
    np.add.at(matrix, (np.arange(output), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(output), upper), fraction)
    return _frozen(matrix)


@functools.lru_cache(maxsize=1024)
def adaptive_pool_matrix(output: int, size: int) -> np.ndarray:
    """The matrix that averages an axis in `output` windows.

    Window i is [floor(i size / output), ceil((i + 1) size / output)). Windows may overlap, and
    repeat values if `output` is larger than `size`.

    Args:
      output: number of windows.
      size: size of the axis.

    Returns:
      Float32 (output, size), read-only; the sum of each row is 1.

    Raises:
      ValueError: a size below 1.
    """
    _check_sizes(output, size)
    matrix = np.zeros((output, size), np.float64)
    for i in range(output):
        start, end = i * size // output, -(-(i + 1) * size // output)
        matrix[i, start:end] = 1 / (end - start)
    return _frozen(matrix)


def resize_bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool = False) -> jax.Array:
    """Resizes feature maps by bilinear interpolation, without antialiasing.

    Args:
      x: (N, H, W, C), floating point.
      size: (height, width) of the result.
      align_corners: see `bilinear_matrix`.

    Returns:
      (N, height, width, C) in the dtype of `x`; interpolated in at least float32.

    Raises:
      ValueError: a size below 1.
    """
    height, width = x.shape[1:3]
    if size == (height, width):
        return x
    if (height, width) == (1, 1):
        return jnp.broadcast_to(x, (x.shape[0], *size, x.shape[3]))
    rows = bilinear_matrix(size[0], height, align_corners)
    return apply_matrices(x, rows, bilinear_matrix(size[1], width, align_corners))


def adaptive_average_pool(x: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Averages feature maps in a fixed number of windows.

    Args:
      x: (N, H, W, C), floating point.
      size: number of windows in (rows, columns), or one number for both; see
        `adaptive_pool_matrix`.

    Returns:
      (N, rows, columns, C) in the dtype of `x`; averaged in at least float32.

    Raises:
      ValueError: a size below 1.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = x.shape[1:3]
    return apply_matrices(
        x, adaptive_pool_matrix(rows, height), adaptive_pool_matrix(columns, width)
    )


def apply_matrices(
    x: jax.Array, rows: np.ndarray | jax.Array, columns: np.ndarray | jax.Array
) -> jax.Array:
    """Multiplies the rows and the columns of feature maps by a matrix each.

    Args:
      x: (N, H, W, C), floating point.
      rows: (H', H).
      columns: (W', W).

    Returns:
      (N, H', W', C) in the dtype of `x`; computed in at least float32, at the highest precision.
      The axis whose product is cheaper comes first.
    """
    wide = accumulation_dtype(x.dtype)
    y, down, across = x.astype(wide), jnp.asarray(rows, wide), jnp.asarray(columns, wide)
    (out_h, in_h), (out_w, in_w) = rows.shape, columns.shape
    rows_first = out_h * in_w * (in_h + out_w) <= out_w * in_h * (in_w + out_h)
    contractions = [("Hh,nhwc->nHwc", down), ("Ww,nhwc->nhWc", across)]
    for equation, matrix in contractions if rows_first else reversed(contractions):
        y = jnp.einsum(equation, matrix, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _check_sizes(output: int, size: int) -> None:
    if output < 1 or size < 1:
        raise ValueError(f"Sizes of feature maps must be at least 1; got {size} to {output}.")


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix
