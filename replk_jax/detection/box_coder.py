"""Boxes as offsets from other boxes: Girshick et al., "R-CNN" (arXiv:1311.2524), appendix C."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from replk_jax.ops.boxes import clip_boxes

# No box is decoded to more than this times the width or height of the one it starts from, or less
# than its inverse.
_LARGEST_RATIO = 1000 / 16


def encode(boxes: jax.Array, targets: jax.Array, stds: Sequence[float]) -> jax.Array:
    """The offsets that turn boxes into targets.

    Args:
      boxes, targets: float (..., 4), with positive widths and heights.
      stds: divide the offsets: of x, y, log width and log height.

    Returns:
      (..., 4): the offsets of the centre over the size of the box, and the logarithms of the
      ratios of the sizes, each divided by its std.
    """
    centre, size = _centre_and_size(boxes)
    target_centre, target_size = _centre_and_size(targets)
    offsets = [(target_centre - centre) / size, jnp.log(target_size / size)]
    return jnp.concatenate(offsets, axis=-1) / _like(stds, boxes)


def decode(
    boxes: jax.Array, deltas: jax.Array, stds: Sequence[float], size: jax.Array | None = None
) -> jax.Array:
    """The inverse of `encode`.

    Args:
      boxes: float (..., 4).
      deltas: (..., 4), of a shape that `boxes` broadcasts to.
      stds: see `encode`.
      size: (2,), height and width that the result is clipped to; None does not clip.

    Returns:
      Boxes of the shape of `deltas`. Their widths and heights differ from those of `boxes` by a
      factor of at most 62.5.
    """
    limit = math.log(_LARGEST_RATIO)
    boxes = jnp.broadcast_to(boxes, deltas.shape)
    deltas = deltas * _like(stds, deltas)
    centre, old_size = _centre_and_size(boxes)
    centre = centre + deltas[..., :2] * old_size
    half = old_size * jnp.exp(jnp.clip(deltas[..., 2:], -limit, limit)) / 2
    decoded = jnp.concatenate([centre - half, centre + half], axis=-1)
    return decoded if size is None else clip_boxes(decoded, size)


def _centre_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def _like(stds: Sequence[float], boxes: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(stds, boxes.dtype), boxes.shape)
