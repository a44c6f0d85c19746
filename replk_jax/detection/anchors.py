"""Anchors: boxes of fixed sizes around every position of a feature pyramid.

Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1.1, with mmdetection's conventions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def base_anchors(stride: float, scale: float, ratios: Sequence[float]) -> np.ndarray:
    """The anchors of the position (0, 0).

    Args:
      stride: of the level, in pixels.
      scale: of a square anchor's side, in strides.
      ratios: of height to width. All anchors of a level have the same area.

    Returns:
      float32 (len(ratios), 4): x1, y1, x2, y2 in pixels.
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))
    side = np.float32(stride * scale)
    half_widths, half_heights = side / roots / 2, side * roots / 2
    return np.stack([-half_widths, -half_heights, half_widths, half_heights], axis=-1)


def level_anchors(
    shape: tuple[int, int], stride: float, scale: float, ratios: Sequence[float]
) -> jax.Array:
    """The anchors of one level, centred on (column x stride, row x stride).

    Args:
      shape: (height, width) of the feature map.
      stride, scale, ratios: see `base_anchors`.

    Returns:
      float32 (height * width * len(ratios), 4) in pixels, by row, column and ratio.
    """
    height, width = shape
    y, x = (jnp.arange(extent, dtype=jnp.float32) * stride for extent in (height, width))
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shifts = jnp.stack([x, y, x, y], axis=-1)[:, :, None]
    base = jnp.asarray(base_anchors(stride, scale, ratios))[None, None]
    return (shifts + base).reshape(-1, 4)


def inside_image(anchors: jax.Array, size: jax.Array) -> jax.Array:
    """Whether each anchor is within the image, of which padding is no part.

    Args:
      anchors: (B, 4).
      size: (2,), height and width without padding.

    Returns:
      bool (B,): x1 and y1 at least 0, x2 below the width, y2 below the height.
    """
    height, width = size[0], size[1]
    x1, y1, x2, y2 = jnp.unstack(anchors, axis=-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)


def centred_in_image(anchors: jax.Array, size: jax.Array) -> jax.Array:
    """Whether the centre of each anchor is in the image, of which padding is no part.

    Args:
      anchors: (B, 4).
      size: (2,), height and width without padding.

    Returns:
      bool (B,): the centre is below the height and the width.
    """
    x1, y1, x2, y2 = jnp.unstack(anchors, axis=-1)
    return (x1 + x2 < 2 * size[1]) & (y1 + y2 < 2 * size[0])
