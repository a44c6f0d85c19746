"""Masks over boxes, pasted into the image: mmdetection's `_do_paste_mask`."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THRESHOLD = 0.5


def paste_mask(
    mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = THRESHOLD
) -> np.ndarray:
    """Pastes one mask into an image, on the host.

    Only the pixels around the box are computed.

    Args:
      mask: float (h, w), probabilities over a grid of cells that divides the box.
      box: (4,): x1, y1, x2, y2 in pixels of the image.
      size: (height, width) of the image.
      threshold: a pixel is set where the value, bilinear between the centres of the cells and 0
        beyond, is at least this. Positive.

    Returns:
      bool (height, width).
    """
    pasted = np.zeros(size, bool)
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    rows, columns = _around(y1, y2, size[0]), _around(x1, x2, size[1])
    down = _weights(np, y1, y2, np.arange(rows.start, rows.stop), mask.shape[0])
    across = _weights(np, x1, x2, np.arange(columns.start, columns.stop), mask.shape[1])
    pasted[rows, columns] = down @ np.asarray(mask, np.float32) @ across.T >= threshold
    return pasted


def paste_masks(
    masks: jax.Array, boxes: jax.Array, size: tuple[int, int], threshold: float = THRESHOLD
) -> jax.Array:
    """The same as `paste_mask`, of D masks in a compiled program.

    Args:
      masks: float (D, h, w).
      boxes: float (D, 4).
      size, threshold: see `paste_mask`.

    Returns:
      bool (D, height, width).
    """

    def paste(mask: jax.Array, box: jax.Array) -> jax.Array:
        x1, y1, x2, y2 = jnp.unstack(box)
        down = _weights(jnp, y1, y2, jnp.arange(size[0]), mask.shape[0])
        across = _weights(jnp, x1, x2, jnp.arange(size[1]), mask.shape[1])
        precision = jax.lax.Precision.HIGHEST
        rows = jnp.matmul(down, mask, precision=precision)
        return jnp.matmul(rows, across.T, precision=precision) >= threshold

    return jax.vmap(paste)(masks.astype(jnp.float32), boxes.astype(jnp.float32))


def _around(low: float, high: float, extent: int) -> slice:
    """The pixels between two coordinates, and one more on each side, within the image."""
    start = np.clip(np.floor(low) - 1, 0, extent)
    stop = np.clip(np.ceil(high) + 1, start, extent)
    return slice(int(start), int(stop))


def _weights(xp: ModuleType, low: Any, high: Any, pixels: Any, cells: int) -> Any:
    """Weights of bilinear interpolation along one axis.

    Args:
      xp: numpy or jax.numpy.
      low, high: float32, the sides of the box.
      pixels: (P,) indices of pixels, whose centres are 0.5 further.
      cells: number of cells between the sides.

    Returns:
      float32 (P, cells). All are 0 for an empty box.
    """
    extent = high - low
    position = (pixels.astype(xp.float32) + 0.5 - low) / xp.where(extent > 0, extent, 1)
    distance = xp.abs(position[:, None] * cells - 0.5 - xp.arange(cells, dtype=xp.float32)[None])
    return xp.where(extent > 0, xp.maximum(1 - distance, 0), 0).astype(xp.float32)
