"""Which truth each box has to find: the assignment by the largest IoU, as in mmdetection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from replk_jax.ops.boxes import pairwise_overlaps
from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.ops.materialize import materialize

BACKGROUND, IGNORED = -1, -2
# Overlaps of this many truths with all boxes are in memory at once.
_CHUNK = 8


class Assignment(NamedTuple):
    """The truths of B boxes.

    Attributes:
      truths: int32 (B,): the index of the truth, `BACKGROUND` or `IGNORED`.
      overlaps: (B,), in at least float32: the largest IoU with a truth; 0 without truths, -1 for
        boxes that take no part.
    """

    truths: jax.Array
    overlaps: jax.Array


def assign(
    boxes: jax.Array,
    truths: jax.Array,
    valid_truths: jax.Array,
    *,
    positive: float,
    negative: float,
    least_positive: float | None = None,
    valid_boxes: jax.Array | None = None,
) -> Assignment:
    """Assigns each box to the truth that it overlaps most.

    A box is positive if its largest IoU is at least `positive`; of equal ones, the first truth
    counts. It is background if that IoU is below `negative`, and otherwise ignored.

    With `least_positive`, each truth also gets the boxes that overlap it most, all of them if there
    are several, provided that this IoU is at least `least_positive` (mmdetection's low-quality
    matches). This takes precedence, and later truths take precedence over earlier ones.

    Memory: 8 numbers per box and a few more, whatever the number of truths, since these are visited
    in chunks of 8: for 270,000 anchors about 9 MB per image.

    Args:
      boxes: float (B, 4).
      truths: float (M, 4); M may be 0.
      valid_truths: bool (M,), False for padding.
      positive, negative: IoU thresholds.
      least_positive: see above; None for no such matches. With 0, a truth that no box overlaps gets
        all boxes, as in mmdetection.
      valid_boxes: bool (B,); the others are ignored and take no part, such as padding, anchors
        beyond the image or boxes in a crowd. None for all.

    Returns:
      The assignment, without gradient.
    """
    boxes, truths = jax.lax.stop_gradient((boxes, truths))
    count, number = len(boxes), len(truths)
    if valid_boxes is None:
        valid_boxes = jnp.ones(count, bool)
    padding = -number % _CHUNK
    chunked = jnp.pad(truths, [(0, padding), (0, 0)]).reshape(-1, _CHUNK, 4)
    chunk_valid = jnp.pad(valid_truths, (0, padding)).reshape(-1, _CHUNK)
    firsts = jnp.arange(len(chunked), dtype=jnp.int32) * _CHUNK

    def visit(
        best: tuple[jax.Array, jax.Array, jax.Array], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        largest, which, forced = best
        first, some, valid = chunk
        # Stored once: comparing with their maximum needs the very numbers it was taken of.
        overlaps = materialize(pairwise_overlaps(some, boxes))
        overlaps = jnp.where(valid[:, None], overlaps, 0.0)
        overlaps = jnp.where(valid_boxes[None], overlaps, -1.0)
        here = jnp.max(overlaps, axis=0)
        best_here = first + jax.lax.argmax(overlaps, 0, jnp.int32)
        which = jnp.where(here > largest, best_here, which)
        if least_positive is not None:
            of_truth = jnp.max(overlaps, axis=1, keepdims=True)
            enough = valid[:, None] & (of_truth >= least_positive)
            matched = enough & (overlaps == of_truth)
            last = _CHUNK - 1 - jax.lax.argmax(matched[::-1], 0, jnp.int32)
            forced = jnp.where(jnp.any(matched, axis=0), first + last, forced)
        return (jnp.maximum(largest, here), which, forced), None

    start = (
        jnp.where(valid_boxes, 0.0, -1.0).astype(accumulation_dtype(boxes.dtype, truths.dtype)),
        jnp.zeros(count, jnp.int32),
        jnp.full(count, BACKGROUND, jnp.int32),
    )
    (largest, which, forced), _ = jax.lax.scan(visit, start, (firsts, chunked, chunk_valid))
    which = jnp.where(largest >= positive, which, IGNORED)
    which = jnp.where((largest >= 0) & (largest < negative), BACKGROUND, which)
    return Assignment(jnp.where(forced >= 0, forced, which).astype(jnp.int32), largest)


def in_crowd(boxes: jax.Array, crowds: jax.Array, threshold: float) -> jax.Array:
    """Whether more than `threshold` of a box's area is in one of the regions to ignore.

    Args:
      boxes: float (B, 4).
      crowds: float (C, 4); C may be 0.
      threshold: of the intersection over the area of the box.

    Returns:
      bool (B,). `~in_crowd(...)` are `valid_boxes` of `assign`.
    """
    return jnp.any(pairwise_overlaps(boxes, crowds, "iof") > threshold, axis=1)
