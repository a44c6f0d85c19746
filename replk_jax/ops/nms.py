"""Non-maximum suppression, exact and of static shape.

The boxes are visited in order of their scores, and a box is kept unless its IoU with one that was
kept before exceeds the threshold. Blocks of boxes replace single boxes: a block is compared with all
that were kept before it, then within itself. There, the boxes that are kept are the fixed point of
"not suppressed by a box that is kept", which repetition reaches from any start, since the first box
depends on none, the second on the first alone, and so on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.batch_loops import largest_of_batch
from replk_jax.ops.boxes import box_areas, pairwise_intersections

BLOCK = 256


class _Kept(NamedTuple):
    """What was kept so far, in order; places from `count` on are free.

    Attributes:
      boxes: (P, 4), of a whole number of blocks.
      groups: int32 (P,).
      indices: int32 (P,), among the boxes that were given.
      count: int32, at most P.
    """

    boxes: jax.Array
    groups: jax.Array
    indices: jax.Array
    count: jax.Array


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float | jax.Array,
    *,
    groups: jax.Array | None = None,
    valid: jax.Array | None = None,
    max_kept: int,
) -> tuple[jax.Array, jax.Array]:
    """Keeps the boxes with the highest scores that overlap no better one too much.

    The result is that of torchvision's and mmcv's `nms`, except for `groups`: there the groups are
    shifted apart, here boxes of different groups are not compared. The rounding of shifted
    coordinates can decide a case near the threshold.

    No gradient goes to the boxes or the scores. For a batch, use `jax.vmap`.

    Args:
      boxes: (N, 4): x1, y1, x2, y2.
      scores: (N,). Of equal ones, the first comes first.
      threshold: a box is suppressed if its IoU with a better one is strictly larger.
      groups: int (N,), such as classes or levels. Only boxes of the same group suppress each other.
      valid: bool (N,), False for padding, which is neither kept nor suppresses.
      max_kept: the number of boxes to keep at most, K.

    Returns:
      The indices of the kept boxes, int32 (K,), in order of their scores, and their count, int32.
      Indices from the count on are N, out of bounds, which `x.at[indices].get(mode="fill")` fills.

    Raises:
      ValueError: shapes that do not fit, a `max_kept` below 1, or the score of a valid box is NaN.
        Under `jit`, where values are unknown, a box with such a score counts as not valid.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    number = len(boxes)
    groups = jnp.zeros(number, jnp.int32) if groups is None else jnp.asarray(groups)
    valid = jnp.ones(number, bool) if valid is None else jnp.asarray(valid)
    if boxes.shape != (number, 4) or {scores.shape, groups.shape, valid.shape} != {(number,)}:
        raise ValueError(
            "nms takes boxes (N, 4) and scores, groups and valid (N,), with jax.vmap for batches; "
            f"got {boxes.shape}, {scores.shape}, {groups.shape} and {valid.shape}."
        )
    if max_kept < 1:
        raise ValueError(f"max_kept must be at least 1; got {max_kept}.")
    _refuse_nan(scores, valid)
    if number == 0:
        return jnp.zeros(max_kept, jnp.int32), jnp.zeros((), jnp.int32)
    boxes, scores = jax.lax.stop_gradient((boxes, scores))
    valid &= ~jnp.isnan(scores)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    kept = _keep(
        boxes[order], groups[order].astype(jnp.int32), valid[order], order, threshold, max_kept
    )
    count = jnp.minimum(kept.count, max_kept)
    indices = kept.indices[:max_kept]
    return jnp.where(jnp.arange(max_kept, dtype=jnp.int32) < count, indices, number), count


def _refuse_nan(scores: jax.Array, valid: jax.Array) -> None:
    if isinstance(scores, jax.core.Tracer) or isinstance(valid, jax.core.Tracer):
        return
    wrong = np.flatnonzero(np.isnan(np.asarray(scores)) & np.asarray(valid))
    if len(wrong):
        raise ValueError(
            f"The score of box {wrong[0]} is NaN ({len(wrong)} of {scores.size} are): NaN has no "
            "rank. Check the network that gave it for NaN, or exclude the boxes with `valid`."
        )


def _keep(
    boxes: jax.Array,
    groups: jax.Array,
    valid: jax.Array,
    indices: jax.Array,
    threshold: float | jax.Array,
    max_kept: int,
) -> _Kept:
    """Visits sorted boxes block by block until none is left or enough are kept.

    Args:
      boxes, groups, valid: sorted by score.
      indices: of the sorted boxes among those that were given.
      threshold, max_kept: see `nms`.
    """
    number = len(boxes)
    block = min(BLOCK, number)
    blocks = -(-number // block)
    padding = blocks * block - number
    boxes, groups, valid, indices = (
        jnp.pad(each, [(0, padding)] + [(0, 0)] * (each.ndim - 1))
        for each in (boxes, groups, valid, indices)
    )
    positions = jnp.arange(len(boxes), dtype=jnp.int32)
    last = jnp.max(jnp.where(valid, positions + 1, 0))  # none is valid from there on
    places = -(-max_kept // block) * block

    def more(state: tuple[jax.Array, _Kept]) -> jax.Array:
        index, kept = state
        return largest_of_batch((index * block < last) & (kept.count < max_kept))

    def visit(state: tuple[jax.Array, _Kept]) -> tuple[jax.Array, _Kept]:
        index, kept = state
        new = [
            jax.lax.dynamic_slice_in_dim(each, index * block, block)
            for each in (boxes, groups, valid, indices)
        ]
        return index + 1, _visit_block(kept, *new, threshold)

    start = _Kept(
        jnp.zeros((places, 4), boxes.dtype),
        jnp.zeros(places, jnp.int32),
        jnp.zeros(places, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    _, kept = jax.lax.while_loop(more, visit, (jnp.zeros((), jnp.int32), start))
    return kept


def _visit_block(
    kept: _Kept,
    boxes: jax.Array,
    groups: jax.Array,
    valid: jax.Array,
    indices: jax.Array,
    threshold: float | jax.Array,
) -> _Kept:
    """Adds the boxes of one block that neither those kept before nor each other suppress."""
    block = len(boxes)

    def suppressed_by(index: jax.Array, remaining: jax.Array) -> jax.Array:
        """The remaining boxes without those that a block of the kept ones suppresses."""
        first = index * block
        better, their_groups = (
            jax.lax.dynamic_slice_in_dim(each, first, block) for each in (kept.boxes, kept.groups)
        )
        there = first + jnp.arange(block, dtype=jnp.int32) < kept.count
        overlapping = _overlapping(better, their_groups, boxes, groups, threshold)
        return remaining & ~jnp.any(overlapping & there[:, None], axis=0)

    before = largest_of_batch((kept.count + block - 1) // block)
    remaining = jax.lax.fori_loop(0, before, suppressed_by, valid)

    rows = jax.lax.broadcasted_iota(jnp.int32, (block, block), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (block, block), 1)
    suppresses = _overlapping(boxes, groups, boxes, groups, threshold) & (rows < columns)

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, stays = state
        return stays, remaining & ~jnp.any(suppresses & stays[:, None], axis=0)

    def changed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        earlier, stays = state
        return largest_of_batch(jnp.any(earlier != stays))

    _, stays = jax.lax.while_loop(changed, again, again((remaining, remaining)))
    place = jnp.where(stays, kept.count + jnp.cumsum(stays, dtype=jnp.int32) - 1, len(kept.boxes))
    added = ((kept.boxes, boxes), (kept.groups, groups), (kept.indices, indices))
    arrays = (before.at[place].set(new, mode="drop") for before, new in added)
    count = jnp.minimum(kept.count + jnp.sum(stays, dtype=jnp.int32), len(kept.boxes))
    return _Kept(*arrays, count)


def _overlapping(
    a: jax.Array, groups_a: jax.Array, b: jax.Array, groups_b: jax.Array, threshold: Any
) -> jax.Array:
    """Whether a box of `a` and one of `b` are of the same group and have an IoU above the threshold.

    Without the lower bound on the union of `pairwise_overlaps`, as in mmcv and torchvision. An empty
    union makes no overlap.
    """
    common = pairwise_intersections(a, b)
    union = box_areas(a)[:, None] + box_areas(b)[None] - common
    overlaps = common / jnp.where(union > 0, union, 1)
    return (overlaps > threshold) & (groups_a[:, None] == groups_b[None])
