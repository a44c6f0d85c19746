"""The task of telling classes apart: each image has one label."""

import jax
import optax

from train.augmentation import Augmentation
from train.step import Task


def classification(augmentation: Augmentation) -> Task:
    """Cross entropy with the soft targets that the augmentation makes of the labels."""
    return Task(prepare=augmentation, loss=_cross_entropy)


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the images, of logits and target shares (N, K)."""
    return optax.softmax_cross_entropy(logits, targets).mean()
