"""Random samples of boxes with a fixed share of positive ones, in arrays of fixed shapes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Samples(NamedTuple):
    """S of B boxes: the positive ones first, then negative ones, then padding.

    Attributes:
      indices: int32 (S,), of the boxes; 0 for padding.
      positive: bool (S,).
      valid: bool (S,), False for padding.
    """

    indices: jax.Array
    positive: jax.Array
    valid: jax.Array


def most_positives(count: int, fraction: float) -> int:
    """The largest number of positive boxes among `count` samples: the first of `Samples`."""
    return math.floor(count * fraction)


def sample(
    positive: jax.Array,
    negative: jax.Array,
    count: int,
    fraction: float,
    key: jax.Array | None = None,
) -> Samples:
    """Samples boxes without replacement, as mmdetection's RandomSampler.

    Positive boxes are at most `most_positives(count, fraction)`; negative ones fill the rest, as
    far as there are enough.

    Args:
      positive, negative: bool (B,): the boxes to choose from. None is both.
      count: S.
      fraction: of positive boxes.
      key: all boxes of a kind are equally likely. None takes the first ones in their order.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    most = most_positives(count, fraction)
    chosen, positives = _choose(positive, most, keys[0])
    others, negatives = _choose(negative, count, keys[1])
    negatives = jnp.minimum(negatives, count - positives)
    slots = jnp.arange(count, dtype=jnp.int32)
    is_positive = slots < positives
    valid = slots < positives + negatives
    indices = jnp.where(
        is_positive,
        jnp.pad(chosen, (0, count - most)),
        others[jnp.clip(slots - positives, 0, count - 1)],
    )
    return Samples(jnp.where(valid, indices, 0), is_positive, valid)


def _choose(
    candidates: jax.Array, count: int, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """At most `count` of the candidates.

    Returns:
      Indices, int32 (count,), the chosen ones first; their number, int32.
    """
    size = len(candidates)
    if key is None:
        rank = jnp.arange(size, 0, -1, dtype=jnp.int32)
    else:
        # 31 random bits: two boxes hardly ever have the same.
        rank = (jax.random.bits(key, (size,), jnp.uint32) >> 1).astype(jnp.int32)
    most = min(count, size)
    _, indices = jax.lax.top_k(jnp.where(candidates, rank, -1), most)
    number = jnp.minimum(jnp.sum(candidates, dtype=jnp.int32), most)
    return jnp.pad(indices.astype(jnp.int32), (0, count - most)), number
