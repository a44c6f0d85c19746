"""Non-maximum suppression, exact and of static shape.

The boxes are visited in order of their scores, and a box is kept unless its IoU with one that was
kept before exceeds the threshold. Blocks of boxes replace single boxes: a block is compared with
all that were kept before it, then within itself. There, the boxes that are kept are the fixed point
of "not suppressed by a box that is kept", which repetition reaches from any start, since the first
box depends on none, the second on the first alone, and so on.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.batch_loops import largest_of_batch

# Boxes of a block, and kept boxes that it is compared with at once.
BLOCK, KEPT_BLOCK = 128, 256


class _Sorted(NamedTuple):
    """Boxes in order of their scores. Coordinates come first, so that loops over boxes vectorise.

    Attributes:
      corners: (4, N).
      groups, indices: int32 (N,).
      valid: bool (N,).
    """

    corners: jax.Array
    groups: jax.Array
    indices: jax.Array
    valid: jax.Array

    def part(self, start: jax.Array, size: int) -> "_Sorted":
        """Some of the boxes."""
        return _Sorted(*(jax.lax.dynamic_slice_in_dim(each, start, size, axis=-1) for each in self))


class _Kept(NamedTuple):
    """What was kept so far, in order; places from `number` on are free.

    Attributes:
      boxes: P boxes, a whole number of blocks. Free places are not valid.
      number: int32, at most P.
    """

    boxes: _Sorted
    number: jax.Array


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
    # The sizes of blocks are arguments, since programs are kept by their arguments.
    return _sorted_nms(boxes, scores, threshold, groups, valid, max_kept, (BLOCK, KEPT_BLOCK))


def _refuse_nan(scores: jax.Array, valid: jax.Array) -> None:
    if isinstance(scores, jax.core.Tracer) or isinstance(valid, jax.core.Tracer):
        return
    wrong = np.flatnonzero(np.isnan(np.asarray(scores)) & np.asarray(valid))
    if len(wrong):
        raise ValueError(
            f"The score of box {wrong[0]} is NaN ({len(wrong)} of {scores.size} are): NaN has no "
            "rank. Check the network that gave it for NaN, or exclude the boxes with `valid`."
        )


@partial(jax.jit, static_argnames=("max_kept", "blocks"))
def _sorted_nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float | jax.Array,
    groups: jax.Array,
    valid: jax.Array,
    max_kept: int,
    blocks: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """`nms` of operands that fit; `blocks` are `BLOCK` and `KEPT_BLOCK`."""
    valid &= ~jnp.isnan(scores)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    candidates = _Sorted(boxes[order].T, groups[order].astype(jnp.int32), order, valid[order])
    kept = _keep(candidates, threshold, max_kept, *blocks)
    indices = kept.boxes.indices[:max_kept]
    indices = jnp.pad(indices, (0, max_kept - len(indices)))
    count = jnp.minimum(kept.number, max_kept)
    there = jnp.arange(max_kept, dtype=jnp.int32) < count
    return jnp.where(there, indices, len(boxes)), count


def _keep(
    boxes: _Sorted, threshold: float | jax.Array, max_kept: int, block: int, kept_block: int
) -> _Kept:
    """Visits boxes block by block until none is left or enough are kept."""
    number = len(boxes.valid)
    block = min(block, number)
    boxes = _padded(boxes, -number % block)
    positions = jnp.arange(len(boxes.valid), dtype=jnp.int32)
    last = jnp.max(jnp.where(boxes.valid, positions + 1, 0))  # none is valid from there on
    most = min(max_kept, number)
    kept_block = min(kept_block, most)

    def more(state: tuple[jax.Array, _Kept]) -> jax.Array:
        index, kept = state
        return largest_of_batch((index * block < last) & (kept.number < most))

    def visit(state: tuple[jax.Array, _Kept]) -> tuple[jax.Array, _Kept]:
        index, kept = state
        return index + 1, _visit(kept, kept_block, boxes.part(index * block, block), threshold)

    free = jax.tree.map(lambda each: jnp.zeros_like(each[..., :0]), boxes)
    kept = _Kept(_padded(free, -(-most // kept_block) * kept_block), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(more, visit, (jnp.zeros((), jnp.int32), kept))[1]


def _padded(boxes: _Sorted, number: int) -> _Sorted:
    """The boxes, and behind them a number of boxes that are not valid."""
    return _Sorted(*(jnp.pad(each, [(0, 0)] * (each.ndim - 1) + [(0, number)]) for each in boxes))


def _visit(kept: _Kept, kept_block: int, new: _Sorted, threshold: float | jax.Array) -> _Kept:
    """Adds the boxes of a block that neither those kept before nor each other suppress."""
    size, places = len(new.valid), len(kept.boxes.valid)

    def compare(index: jax.Array, remaining: jax.Array) -> jax.Array:
        better = kept.boxes.part(index * kept_block, kept_block)
        return remaining & ~jnp.any(_suppresses(better, new, threshold), axis=0)

    blocks = largest_of_batch((kept.number + kept_block - 1) // kept_block)
    remaining = jax.lax.fori_loop(0, blocks, compare, new.valid)

    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    within = _suppresses(new, new, threshold) & (rows < columns)

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, stays = state
        return stays, remaining & ~jnp.any(within & stays[:, None], axis=0)

    def changed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, stays = state
        return largest_of_batch(jnp.any(before != stays))

    _, stays = jax.lax.while_loop(changed, again, again((remaining, remaining)))
    place = jnp.where(stays, kept.number + jnp.cumsum(stays, dtype=jnp.int32) - 1, places)
    boxes = _Sorted(
        *(
            before.at[..., place].set(added, mode="drop")
            for before, added in zip(kept.boxes, new, strict=True)
        )
    )
    count = kept.number + jnp.sum(stays, dtype=jnp.int32)
    return _Kept(boxes, jnp.minimum(count, places))


def _suppresses(a: _Sorted, b: _Sorted, threshold: float | jax.Array) -> jax.Array:
    """Whether a box of `a` is valid, of the group of one of `b`, and overlaps it too much: (A, B).

    The IoU is that of mmcv and torchvision, where the union has no lower bound. With an empty union
    there is no overlap.
    """
    ax1, ay1, ax2, ay2 = a.corners[:, :, None]
    bx1, by1, bx2, by2 = b.corners[:, None]
    widths = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    heights = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    common = widths * heights
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    overlaps = common / jnp.where(union > 0, union, 1)
    return (overlaps > threshold) & (a.groups[:, None] == b.groups[None]) & a.valid[:, None]
