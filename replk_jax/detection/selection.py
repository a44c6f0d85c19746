"""From candidates to detections: NMS by class, and the most confident of what is left."""

import functools
from typing import NamedTuple

import jax

from replk_jax.detection.structures import Detections
from replk_jax.ops.nms import nms


class Candidates(NamedTuple):
    """Boxes that may be detections, of N images, P each.

    Attributes:
      boxes: float32 (N, P, 4).
      scores: float32 (N, P).
      classes: int32 (N, P).
      valid: bool (N, P), False for those that are no detections, such as padding.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


def select(candidates: Candidates, nms_threshold: float, max_detections: int) -> Detections:
    """The most confident candidates that no better one of their class overlaps.

    Args:
      candidates: of N images.
      nms_threshold: the largest IoU of two detections of a class.
      max_detections: D, the number of detections of an image at most.

    Returns:
      The detections, sorted by score; of equal scores in the order of the candidates. No masks.
    """
    keep = functools.partial(_select, nms_threshold=nms_threshold, max_detections=max_detections)
    return jax.vmap(keep)(candidates)


def _select(candidates: Candidates, nms_threshold: float, max_detections: int) -> Detections:
    boxes, scores, classes, valid = candidates
    indices, count = nms(
        boxes, scores, nms_threshold, groups=classes, valid=valid, max_kept=max_detections
    )

    def kept(array: jax.Array, padding: int) -> jax.Array:
        return array.at[indices].get(mode="fill", fill_value=padding)

    return Detections(kept(boxes, 0), kept(scores, 0), kept(classes, -1), count)
