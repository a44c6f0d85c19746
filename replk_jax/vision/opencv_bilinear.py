"""Bilinear resizing of uint8 images as OpenCV does it, to the byte, in NumPy.

OpenCV's `cv2.resize` with `INTER_LINEAR` works in fixed point. Networks of mmsegmentation and
mmdetection are trained and tested on images that it resized.
"""

from typing import NamedTuple

import numpy as np

_ONE = 2048  # the fixed-point weight of 1
_CHUNK = 1 << 18  # values of the result that are computed at a time, so that they stay in the cache


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image; equal to `cv2.resize(image, (w, h))`.

    The value at position i of an axis is interpolated at (i + 0.5) H / h - 0.5, without smoothing
    where the axis shrinks, and with the border value outside. Weights are rounded to 1/2048. An
    image that is halved along both axes is averaged over areas of 2 x 2.

    Args:
      image: uint8 (H, W, C) or (H, W).
      size: (h, w), at least 1.

    Returns:
      uint8 (h, w, C) or (h, w).

    Raises:
      ValueError: another dtype or number of axes, an empty image, or an empty result.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise ValueError(
            "An image is uint8 (H, W) or (H, W, C), and not empty; got "
            f"{image.dtype} {image.shape}."
        )
    if min(size) < 1:
        raise ValueError(f"The sides of the result are at least 1; got {size}.")
    if image.shape[:2] == tuple(size):
        return image.copy()
    values = image if image.ndim == 3 else image[:, :, None]
    resized = _halve(values) if _is_half(values, size) else _interpolate(values, size)
    return resized if image.ndim == 3 else resized[:, :, 0]


class _Axis(NamedTuple):
    """Interpolation along an axis: result i is the sum of the two sources, with weights."""

    low: np.ndarray
    high: np.ndarray
    low_weight: np.ndarray
    high_weight: np.ndarray


def _is_half(image: np.ndarray, size: tuple[int, int]) -> bool:
    return image.shape[:2] == (2 * size[0], 2 * size[1])


def _halve(image: np.ndarray) -> np.ndarray:
    """The mean over areas of 2 x 2, rounded half up."""
    sums = image[::2].astype(np.uint16)
    sums += image[1::2]
    return ((sums[:, ::2] + sums[:, 1::2] + 2) >> 2).astype(np.uint8)


def _interpolate(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    columns = _axis(image.shape[1], width, edge_weight=True)
    rows = _axis(image.shape[0], height, edge_weight=False)
    channels = image.shape[2]
    result = np.empty((height, width, channels), np.uint8)
    step = max(1, _CHUNK // (width * channels))
    for start in range(0, height, step):
        part = slice(start, start + step)
        # Each source row is interpolated along its columns once, then both axes are combined.
        needed, places = np.unique(
            np.concatenate([rows.low[part], rows.high[part]]), return_inverse=True
        )
        wide = _along_columns(image[needed[0] : needed[-1] + 1], needed - needed[0], columns)
        low, high = np.split(places, 2)
        total = _weighted(wide, low, rows.low_weight[part])
        total += _weighted(wide, high, rows.high_weight[part])
        total += 2
        total >>= 2
        result[part] = total
    return result


def _along_columns(image: np.ndarray, rows: np.ndarray, columns: _Axis) -> np.ndarray:
    """Rows of an image, interpolated, in units of 1/2048, shifted right by 4."""
    source = image[rows].astype(np.int32)
    total = source.take(columns.low, axis=1)
    total *= columns.low_weight[:, None]
    high = source.take(columns.high, axis=1)
    high *= columns.high_weight[:, None]
    total += high
    total >>= 4
    return total


def _weighted(wide: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    product = wide.take(rows, axis=0)
    product *= weights[:, None, None]
    product >>= 16
    return product


def _axis(source: int, result: int, edge_weight: bool) -> _Axis:
    """The interpolation along an axis.

    Args:
      source, result: its lengths.
      edge_weight: outside the centres of the first and the last pixel, whether that pixel has the
        weight 1, or both weights apply to it. The sums of these differ by their rounding.
    """
    scale = source / result
    position = ((np.arange(result) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position).astype(np.int64)
    fraction = position - low.astype(np.float32)
    if edge_weight:
        fraction = np.where((low < 0) | (low >= source - 1), np.float32(0), fraction)
    low_weight = np.rint((1 - fraction) * np.float32(_ONE)).astype(np.int32)
    high_weight = np.rint(fraction * np.float32(_ONE)).astype(np.int32)
    last = source - 1
    return _Axis(np.clip(low, 0, last), np.clip(low + 1, 0, last), low_weight, high_weight)
