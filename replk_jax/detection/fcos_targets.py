"""What FCOS learns at each point of the pyramid: Tian et al., "FCOS" (arXiv:1904.01355)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.detection.structures import Truths
from replk_jax.ops.boxes import box_areas


class Points(NamedTuple):
    """The points of a pyramid, level by level, each row by row.

    Attributes:
      positions: float32 (P, 2), x and y in pixels.
      strides: float32 (P,), of the level of each.
      levels: int (P,), its index.
    """

    positions: np.ndarray
    strides: np.ndarray
    levels: np.ndarray


class Targets(NamedTuple):
    """The targets of N images at P points.

    Attributes:
      classes: int32 (N, P); K, the number of classes, for background.
      distances: float32 (N, P, 4), from the point to the left, top, right and bottom side of its
        box in pixels; 0 for background.
      centerness: float32 (N, P), 1 in the middle of the box; 0 for background.
    """

    classes: jax.Array
    distances: jax.Array
    centerness: jax.Array


def pyramid_points(sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> Points:
    """The points of a pyramid: the middle of each position of its levels.

    Args:
      sizes: (rows, columns) of each level.
      strides: of each level.
    """
    positions, counts = [], []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = np.mgrid[:rows, :columns] + 0.5
        positions.append(stride * np.stack([x.ravel(), y.ravel()], axis=-1))
        counts.append(rows * columns)
    return Points(
        np.concatenate(positions).astype(np.float32),
        np.repeat(np.asarray(strides, np.float32), counts),
        np.repeat(np.arange(len(counts)), counts),
    )


def fcos_targets(
    points: Points,
    truths: Truths,
    num_classes: int,
    limits: Sequence[float],
    center_radius: float | None = None,
) -> Targets:
    """Assigns the points of a pyramid to the annotated objects.

    A point can belong to a box that it is strictly inside of, if the largest of its distances to
    the sides is in the range of its level, which includes both ends. Of several boxes it belongs to
    the smallest; of equally small ones, to the first.

    Args:
      points: of P positions.
      truths: the objects. Their masks are ignored.
      num_classes: K.
      limits: in pixels, where the range of each level but the last ends and that of the next one
        begins. The first range has no lower end.
      center_radius: if given, a point can only belong to a box if it also is strictly inside a
        square about the middle of the box, of which half a side is this number of strides.

    Returns:
      The targets of the N images.
    """
    boxes = truths.boxes.astype(jnp.float32)
    images, count = boxes.shape[0], len(points.levels)
    if boxes.shape[1] == 0:
        return Targets(
            jnp.full((images, count), num_classes, jnp.int32),
            jnp.zeros((images, count, 4), jnp.float32),
            jnp.zeros((images, count), jnp.float32),
        )
    pairs = boxes[:, None]  # (N, P, M, 4) once it meets the points
    x, y = (jnp.asarray(points.positions[:, axis]).reshape(1, -1, 1) for axis in (0, 1))
    distances = _distances(x, y, pairs)
    allowed = truths.valid[:, None] & (jnp.min(distances, axis=-1) > 0)
    if center_radius is not None:
        reach = center_radius * jnp.asarray(points.strides).reshape(1, -1, 1)
        middle_x, middle_y = ((pairs[..., axis] + pairs[..., axis + 2]) / 2 for axis in (0, 1))
        allowed &= (jnp.abs(x - middle_x) < reach) & (jnp.abs(y - middle_y) < reach)
    least, most = (
        np.asarray(ends, np.float32)[points.levels].reshape(1, -1, 1)
        for ends in ([-1, *limits], [*limits, np.inf])
    )
    largest = jnp.max(distances, axis=-1)
    allowed &= (largest >= least) & (largest <= most)
    chosen = jnp.argmin(jnp.where(allowed, box_areas(pairs), jnp.inf), axis=-1)
    positive = jnp.any(allowed, axis=-1)
    classes = jnp.take_along_axis(truths.classes, chosen, axis=1)
    boxes = jnp.take_along_axis(boxes, chosen[..., None], axis=1)
    distances = _distances(x[..., 0], y[..., 0], boxes)
    return Targets(
        jnp.where(positive, classes, num_classes).astype(jnp.int32),
        jnp.where(positive[..., None], distances, 0),
        jnp.where(positive, centerness(jnp.where(positive[..., None], distances, 1)), 0),
    )


def _distances(x: jax.Array, y: jax.Array, boxes: jax.Array) -> jax.Array:
    """(..., 4), from points x and y to the left, top, right and bottom sides of boxes (..., 4)."""
    x1, y1, x2, y2 = (boxes[..., axis] for axis in range(4))
    return jnp.stack([x - x1, y - y1, x2 - x, y2 - y], axis=-1)


def centerness(distances: jax.Array) -> jax.Array:
    """How close points are to the middle of their boxes, between 0 and 1.

    Args:
      distances: (..., 4), left, top, right and bottom, above 0.

    Returns:
      sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)), (...).
    """
    opposite = distances[..., 2:]
    ratios = jnp.minimum(distances[..., :2], opposite) / jnp.maximum(distances[..., :2], opposite)
    return jnp.sqrt(ratios[..., 0] * ratios[..., 1])
