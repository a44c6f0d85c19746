"""Bilinear and nearest resizing and adaptive average pooling, as in PyTorch.

Bilinear resizing and pooling are linear and separable: an interpolation matrix for the rows and one
for the columns. They equal PyTorch's `interpolate` (bilinear, without antialiasing) and
`AdaptiveAvgPool2d`. `jax.image.resize` differs: it smooths images that shrink, and has no
`align_corners`.

Resizing reads the two neighbours of every position. On two CPU cores that takes 37 ms for 512
channels from 64 x 256 to 128 x 512 pixels, where products with the matrices take 270 ms; for other
sizes of segmentation heads it is two to ten times as fast as the products. The gradient consists of
the products: a scatter takes as long, and adds in no fixed order on GPUs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.dtypes import accumulation_dtype


class Neighbours(NamedTuple):
    """The positions between which an axis is interpolated, and the weight of the upper one."""

    lower: np.ndarray
    upper: np.ndarray
    fraction: np.ndarray


@functools.lru_cache(maxsize=1024)
def linear_taps(output: int, size: int, align_corners: bool = False) -> Neighbours:
    """The neighbours of each position of the result; see `bilinear_matrix`.

    Returns:
      Three arrays (output,): int32, int32 and float64.

    Raises:
      ValueError: a size below 1.
    """
    _check_sizes(output, size)
    positions = np.arange(output, dtype=np.float64)
    if align_corners:
        source = positions * ((size - 1) / (output - 1) if output > 1 else 0.0)
    else:
        source = np.maximum((positions + 0.5) * (size / output) - 0.5, 0.0)
    lower = np.minimum(source.astype(np.int32), size - 1)
    return Neighbours(lower, np.minimum(lower + 1, size - 1), source - lower)


def bilinear_matrix(
    output: int, size: int, align_corners: bool = False, dtype: Any = np.float32
) -> np.ndarray:
    """The matrix that resizes an axis by linear interpolation.

    Position i of the result reads position (i + 0.5) size / output - 0.5, at least 0, or with
    `align_corners` i (size - 1) / (output - 1), which is 0 for one position. The upper neighbour
    of the last position is that position itself.

    Args:
      output: size of the result.
      size: size of the axis.
      align_corners: whether the first and last positions of both coincide.
      dtype: of the matrix, which is computed in float64.

    Returns:
      (output, size); the sum of each row is 1.

    Raises:
      ValueError: a size below 1.
    """
    lower, upper, fraction = linear_taps(output, size, align_corners)
    matrix = np.zeros((output, size), np.float64)
    np.add.at(matrix, (np.arange(output), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(output), upper), fraction)
    return matrix.astype(dtype)


def adaptive_pool_matrix(output: int, size: int, dtype: Any = np.float32) -> np.ndarray:
    """The matrix that averages an axis in `output` windows.

    Window i is [floor(i size / output), ceil((i + 1) size / output)). Windows may overlap, and
    repeat values if `output` is larger than `size`.

    Args:
      output: number of windows.
      size: size of the axis.
      dtype: of the matrix, which is computed in float64.

    Returns:
      (output, size); the sum of each row is 1.

    Raises:
      ValueError: a size below 1.
    """
    _check_sizes(output, size)
    matrix = np.zeros((output, size), np.float64)
    for i in range(output):
        start, end = i * size // output, -(-(i + 1) * size // output)
        matrix[i, start:end] = 1 / (end - start)
    return matrix.astype(dtype)


def resize_bilinear(x: jax.Array, size: Sequence[int], align_corners: bool = False) -> jax.Array:
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
    rows, columns = size
    _check_sizes(rows, columns, *x.shape[1:3])
    if (rows, columns) == x.shape[1:3]:
        return x
    return _resized(x, (rows, columns), align_corners)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _resized(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """`resize_bilinear` by the neighbours of each position."""
    y = x.astype(accumulation_dtype(x.dtype))
    for axis, output in zip((1, 2), size, strict=True):
        lower, upper, fraction = linear_taps(output, y.shape[axis], align_corners)
        shape = [1] * y.ndim
        shape[axis] = output
        weight = jnp.asarray(fraction.reshape(shape), y.dtype)
        # The indices are in bounds; "clip" spares the mask of those that are not.
        take = functools.partial(jnp.take, y, axis=axis, mode="clip", indices_are_sorted=True)
        y = take(lower) * (1 - weight) + take(upper) * weight
    return y.astype(x.dtype)


@_resized.defjvp
def _resized_jvp(
    size: tuple[int, int], align_corners: bool, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    wide = accumulation_dtype(x.dtype)
    rows, columns = (
        bilinear_matrix(output, before, align_corners, wide)
        for output, before in zip(size, x.shape[1:3], strict=True)
    )
    return _resized(x, size, align_corners), apply_matrices(dx, rows, columns)


def resize_nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes feature maps to those of the nearest neighbours, as PyTorch's mode "nearest".

    Position i of an axis of `output` positions reads position floor(i size / output).

    Args:
      x: (N, H, W, C), floating point.
      size: (height, width) of the result.

    Returns:
      (N, height, width, C) in the dtype of `x`. Gradients are summed in at least float32.

    Raises:
      ValueError: a size below 1.
    """
    rows, columns = size
    _check_sizes(rows, columns, *x.shape[1:3])
    y = x.astype(accumulation_dtype(x.dtype))
    for axis, output in zip((1, 2), (rows, columns), strict=True):
        before = y.shape[axis]
        indices = np.arange(output) * before // output
        factor = -(-output // before)
        if (indices == np.arange(output) // factor).all():
            # Every position is repeated. The gradient is a sum over neighbours, not a scatter.
            y = jax.lax.slice_in_dim(_repeated(y, factor, axis), 0, output, axis=axis)
        else:
            y = jnp.take(y, indices, axis=axis, mode="clip", indices_are_sorted=True)
    return y.astype(x.dtype)


def _repeated(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Every position of an axis `factor` times."""
    shape = x.shape
    x = jnp.broadcast_to(
        jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], factor, *shape[axis + 1 :])
    )
    return x.reshape(*shape[:axis], shape[axis] * factor, *shape[axis + 1 :])


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
    sizes = (size, size) if isinstance(size, int) else size
    wide = accumulation_dtype(x.dtype)
    rows, columns = (
        adaptive_pool_matrix(output, before, wide)
        for output, before in zip(sizes, x.shape[1:3], strict=True)
    )
    return apply_matrices(x, rows, columns)


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


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"Sizes of feature maps must be at least 1; got {min(sizes)}.")
