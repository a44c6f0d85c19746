"""The losses of RoI heads, as in mmdetection: class, box and mask."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from replk_jax.detection.box_coder import decode, encode
from replk_jax.detection.box_head import of_class
from replk_jax.detection.losses import binary_cross_entropy, giou_loss, smooth_l1
from replk_jax.detection.roi_targets import Rois

# Of the offsets, by the beta of `smooth_l1`; or of the decoded boxes.
_BETAS = {"l1": 0.0, "smooth_l1": 1.0}
BOX_LOSSES = (*_BETAS, "giou")


def box_head_losses(
    logits: jax.Array, deltas: jax.Array, rois: Rois, stds: Sequence[float], box_loss: str
) -> dict[str, jax.Array]:
    """The losses of a stage, divided by the number of sampled boxes of all images.

    Args:
      logits: (N, S, K + 1), background last.
      deltas: (N, S, K or 1, 4); those of the box's true class count.
      rois: the sampled boxes.
      stds: of the offsets.
      box_loss: one of `BOX_LOSSES`. Boxes for "giou" are not clipped.

    Returns:
      Scalars "loss_cls", "loss_bbox", and "acc": the percentage of sampled boxes with the right
      class.
    """
    number = jnp.maximum(jnp.sum(rois.valid), 1).astype(logits.dtype)
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, rois.labels[..., None], axis=-1)[..., 0]
    right = rois.valid & (jnp.argmax(logits, axis=-1) == rois.labels)
    classes = jnp.where(rois.positive, rois.labels, 0)
    deltas = of_class(deltas, classes)
    if box_loss == "giou":
        per_box = giou_loss(decode(rois.boxes, deltas, stds), rois.targets)
    else:
        # Padding has no size, of which there are no offsets.
        positive = rois.positive[..., None]
        unit = jnp.broadcast_to(jnp.asarray([0.0, 0, 1, 1], deltas.dtype), deltas.shape)
        boxes, targets = (jnp.where(positive, each, unit) for each in (rois.boxes, rois.targets))
        per_box = smooth_l1(deltas, encode(boxes, targets, stds), _BETAS[box_loss]).sum(axis=-1)
    return {
        "loss_cls": -jnp.sum(jnp.where(rois.valid, picked, 0)) / number,
        "acc": 100 * jnp.sum(right) / number,
        "loss_bbox": jnp.sum(jnp.where(rois.positive, per_box, 0)) / number,
    }


def mask_loss(logits: jax.Array, targets: jax.Array, positive: jax.Array) -> jax.Array:
    """The binary cross entropy, its mean over the pixels of all positive boxes.

    Args:
      logits: (R, h, w), of the true class of each box.
      targets: bool (R, h, w).
      positive: bool (R,). Without any, the loss is 0.
    """
    losses = jnp.mean(binary_cross_entropy(logits, targets), axis=(1, 2))
    number = jnp.maximum(jnp.sum(positive), 1).astype(logits.dtype)
    return jnp.sum(jnp.where(positive, losses, 0)) / number
