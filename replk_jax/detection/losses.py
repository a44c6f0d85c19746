"""The losses of detectors, element by element: sums and divisors are up to the caller.

They compute in at least float32, and define what mmdetection's losses of these names do.
"""

import jax
import jax.numpy as jnp

from replk_jax.ops.boxes import aligned_overlaps
from replk_jax.ops.dtypes import accumulation_dtype

_LEAST_IOU = 1e-6


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The cross entropy of Bernoulli distributions.

    Args:
      logits: (...), floating point.
      targets: (...), probabilities, or bool.

    Returns:
      (...), in at least float32.
    """
    logits, targets = _wide(logits), targets.astype(accumulation_dtype(logits.dtype))
    return jax.nn.softplus(-jnp.abs(logits)) + jnp.maximum(logits, 0) - logits * targets


def sigmoid_focal_loss(
    logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """The focal loss: Lin et al., "Focal Loss for Dense Object Detection" (arXiv:1708.02002).

    Args:
      logits: (..., K), floating point.
      targets: (...), bool or 0 and 1, of the same shape.
      alpha: weight of the targets 1; 1 - alpha is that of the targets 0.
      gamma: exponent of the probability of the wrong answer, at least 1.

    Returns:
      (..., K), in at least float32.
    """
    logits = _wide(logits)
    targets = targets.astype(logits.dtype)
    wrong = jax.nn.sigmoid(jnp.where(targets > 0, -logits, logits))
    weights = jnp.where(targets > 0, alpha, 1 - alpha) * wrong**gamma
    return weights * binary_cross_entropy(logits, targets)


def iou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """-log(IoU): Yu et al., "UnitBox" (arXiv:1608.01471). The IoU counts as at least 1e-6.

    Args:
      boxes, targets: (..., 4): x1, y1, x2, y2.

    Returns:
      (...), in at least float32.
    """
    return -jnp.log(jnp.maximum(aligned_overlaps(boxes, targets, "iou"), _LEAST_IOU))


def giou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - GIoU: Rezatofighi et al., "Generalized Intersection over Union" (arXiv:1902.09630).

    Args:
      boxes, targets: (..., 4): x1, y1, x2, y2.

    Returns:
      (...), between 0 and 2, in at least float32.
    """
    return 1 - aligned_overlaps(boxes, targets, "giou")


def smooth_l1(values: jax.Array, targets: jax.Array, beta: float = 1.0) -> jax.Array:
    """0.5 d^2 / beta for differences below beta, |d| - 0.5 beta otherwise.

    Args:
      values, targets: (...), floating point.
      beta: where the parabola ends; 0 is the L1 loss.

    Returns:
      (...), in at least float32.
    """
    difference = jnp.abs(_wide(values) - targets.astype(accumulation_dtype(values.dtype)))
    if beta == 0:
        return difference
    return jnp.where(
        difference < beta, 0.5 * jnp.square(difference) / beta, difference - 0.5 * beta
    )


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(accumulation_dtype(x.dtype))
