"""Areas and overlaps of boxes.

A box is x1, y1, x2, y2 in pixels, and its width is x2 - x1. The definitions are those of
mmdetection's `bbox_overlaps`. GIoU: Rezatofighi et al., "Generalized Intersection over Union",
https://arxiv.org/abs/1902.09630.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from replk_jax.ops.dtypes import accumulation_dtype

Overlap = Literal["iou", "iof", "giou"]
# The lower bound of unions and enclosing boxes, so that empty boxes have finite overlaps.
SMALLEST_AREA = 1e-6


def box_areas(boxes: jax.Array) -> jax.Array:
    """The areas of boxes.

    Args:
      boxes: (..., 4).

    Returns:
      (...) in at least float32. Negative if one side is.
    """
    boxes = _checked(boxes)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_overlaps(a: jax.Array, b: jax.Array, kind: Overlap = "iou") -> jax.Array:
    """The overlap of each box of `a` with each of `b`.

    Args:
      a: (M, 4).
      b: (N, 4).
      kind: "iou", the intersection over the union; "iof", over the area of the box of `a`; "giou",
        IoU minus the part of the enclosing box that neither covers.

    Returns:
      (M, N) in at least float32. With an empty box, 0 for "iou" and "iof".

    Raises:
      ValueError: an unknown kind, or boxes without four coordinates.
    """
    return _overlaps(*_pairs(a, b), kind)


def aligned_overlaps(a: jax.Array, b: jax.Array, kind: Overlap = "iou") -> jax.Array:
    """The overlap of each box of `a` with the box of `b` at the same position.

    Args:
      a, b: (..., 4), of the same shape.
      kind: see `pairwise_overlaps`.

    Returns:
      (...) in at least float32.

    Raises:
      ValueError: an unknown kind, different shapes, or boxes without four coordinates.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"Aligned boxes have one shape; got {a.shape} and {b.shape}.")
    return _overlaps(a, b, kind)


def clip_boxes(boxes: jax.Array, size: Any) -> jax.Array:
    """Moves the corners of boxes into the image.

    Args:
      boxes: (..., 4).
      size: (height, width) of the image, numbers or an array (2,).

    Returns:
      Of the shape of `boxes`, in at least float32, between 0 and the width or the height.

    Raises:
      ValueError: boxes without four coordinates.
    """
    boxes = _checked(boxes)
    height, width = (jnp.asarray(size[axis], boxes.dtype) for axis in (0, 1))
    limits = jnp.broadcast_to(jnp.stack([width, height, width, height]), boxes.shape)
    return jnp.clip(boxes, jnp.zeros_like(boxes), limits)


def _checked(boxes: Any) -> jax.Array:
    """The boxes in the dtype that areas are computed in."""
    boxes = jnp.asarray(boxes)
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"Boxes have shape (..., 4): x1, y1, x2, y2; got {boxes.shape}.")
    return boxes.astype(accumulation_dtype(boxes.dtype))


def _pairs(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All pairs, as boxes (M, 1, 4) and (1, N, 4)."""
    a, b = _checked(a), _checked(b)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(
            f"Pairs are of boxes (M, 4) and (N, 4), with jax.vmap for batches; got {a.shape} and "
            f"{b.shape}."
        )
    return a[:, None], b[None]


def _intersections(a: jax.Array, b: jax.Array) -> jax.Array:
    top_left = jnp.maximum(a[..., :2], b[..., :2])
    bottom_right = jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(bottom_right - top_left, 0)
    return sides[..., 0] * sides[..., 1]


def _overlaps(a: jax.Array, b: jax.Array, kind: Overlap) -> jax.Array:
    """The overlaps of boxes whose shapes broadcast."""
    if kind not in get_args(Overlap):
        raise ValueError(f"Unknown overlap {kind!r}; known: {', '.join(get_args(Overlap))}.")
    common = _intersections(a, b)
    if kind == "iof":
        return common / jnp.maximum(box_areas(a), SMALLEST_AREA)
    union = jnp.maximum(box_areas(a) + box_areas(b) - common, SMALLEST_AREA)
    overlaps = common / union
    if kind == "iou":
        return overlaps
    top_left = jnp.minimum(a[..., :2], b[..., :2])
    bottom_right = jnp.maximum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(bottom_right - top_left, 0)
    enclosing = jnp.maximum(sides[..., 0] * sides[..., 1], SMALLEST_AREA)
    return overlaps - (enclosing - union) / enclosing
