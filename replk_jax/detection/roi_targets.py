"""The sample of boxes that the losses of an RoI head see, and what they should become."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from replk_jax.detection.assignment import BACKGROUND, IGNORED, assign
from replk_jax.detection.rpn import Proposals
from replk_jax.detection.sampling import most_positives, sample
from replk_jax.detection.structures import Truths


class Rois(NamedTuple):
    """S sampled boxes of each of N images: positive ones first, then background, then padding.

    Attributes:
      boxes: float32 (N, S, 4) in pixels of the network's input; 0 for padding.
      labels: int32 (N, S): the class of the truth, or the number of classes for background.
      truths: int32 (N, S), the index of the truth of a positive box; -1 for others.
      targets: float32 (N, S, 4), the box of that truth; the box itself for others.
      positive: bool (N, S).
      valid: bool (N, S), False for padding.
      is_truth: bool (N, S), whether the box is a truth itself.
    """

    boxes: jax.Array
    labels: jax.Array
    truths: jax.Array
    targets: jax.Array
    positive: jax.Array
    valid: jax.Array
    is_truth: jax.Array

    def first(self, count: int, fraction: float) -> "Rois":
        """The first boxes, which contain all positive ones of a sample."""
        most = most_positives(count, fraction)
        return Rois(*(array[:, :most] for array in self))


def sample_rois(
    proposals: Proposals,
    truths: Truths,
    *,
    threshold: float,
    match_low_quality: bool,
    count: int,
    fraction: float,
    background: int,
    key: jax.Array | None,
) -> Rois:
    """Samples proposals and the truths themselves, which precede them.

    Args:
      proposals: the boxes; invalid ones are left out.
      truths: the annotated objects.
      threshold: least IoU of a positive box with its truth; boxes below it are background.
      match_low_quality: see `RoIHead`.
      count: S.
      fraction: the largest share of positive ones.
      background: the label of background.
      key: of the sample; None for the first boxes.
    """
    keys = None if key is None else jax.random.split(key, len(proposals.boxes))
    objects = truths.boxes.shape[1]

    def of_image(boxes, valid_boxes, true_boxes, classes, valid_truths, key):
        assigned, _ = assign(
            boxes,
            true_boxes,
            valid_truths,
            positive=threshold,
            negative=threshold,
            least_positive=threshold if match_low_quality else None,
            valid_boxes=valid_boxes,
        )
        themselves = jnp.arange(objects, dtype=jnp.int32)
        assigned = jnp.concatenate([jnp.where(valid_truths, themselves, IGNORED), assigned])
        boxes = jnp.concatenate([true_boxes, boxes])
        chosen = sample(assigned >= 0, assigned == BACKGROUND, count, fraction, key)
        which = jnp.where(chosen.positive, assigned[chosen.indices], -1)
        boxes = jnp.where(chosen.valid[:, None], boxes[chosen.indices], 0)
        targets = jnp.where(chosen.positive[:, None], true_boxes[jnp.maximum(which, 0)], boxes)
        labels = jnp.where(chosen.positive, classes[jnp.maximum(which, 0)], background)
        is_truth = chosen.valid & (chosen.indices < objects)
        return Rois(boxes, labels, which, targets, chosen.positive, chosen.valid, is_truth)

    axes = (0, 0, 0, 0, 0, None if keys is None else 0)
    boxes, valid = proposals
    arguments = (boxes, valid, truths.boxes, truths.classes, truths.valid)
    return jax.vmap(of_image, axes)(*jax.lax.stop_gradient(arguments), keys)
