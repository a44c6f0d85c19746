"""The task of telling classes apart: each image has one label."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.preprocessing import normalize
from train.augmentation import Augmentation
from train.evaluation import Measure
from train.step import Batch, Task


def classification(augmentation: Augmentation) -> Task:
    """Cross entropy with the soft targets that the augmentation makes of the labels."""
    return Task(prepare=augmentation, loss=_cross_entropy)


def accuracy(mean: tuple[float, ...], std: tuple[float, ...]) -> Measure:
    """`top1`, `top5` (shares of 1) and `loss` (mean cross entropy); the best has most `top1`.

    Of batches with `image`, uint8 (N, H, W, C), and `label`, int32 (N,), and logits (N, K).

    Args:
      mean, std: of the images, channel by channel, for values in [0, 1].
    """

    def inputs(batch: Batch) -> jax.Array:
        return normalize(batch["image"], mean, std)

    return Measure(inputs, _sums, _means, best_by="top1")


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the images, of logits and target shares (N, K)."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def _sums(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels, mask = batch["label"], batch["mask"]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = (best == labels[:, None]) & mask[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
    }


def _means(sums: Mapping[str, np.ndarray], examples: int) -> dict[str, float]:
    return {name: float(sums[name] / examples) for name in ("top1", "top5", "loss")}
