"""The paper's optimiser: AdamW, decay on kernels only, linear warm-up and cosine."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of the official training script, step by step.

    The warm-up includes both its ends, so it starts at 0 and the peak is used twice; the cosine
    would reach `final` one step after the last.

    Args:
      peak, final: learning rates.
      warmup_steps: steps of the linear part; 0 for none.
      total_steps: of the whole run.
    """

    def schedule(step):
        warmup = peak * step / max(warmup_steps - 1, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = final + 0.5 * (peak - final) * (1 + jnp.cos(math.pi * jnp.minimum(progress, 1)))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def adamw(recipe: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW that decays tensors of two or more dimensions: no biases, no batch norms.

    Args:
      recipe: `b1`, `b2`, `eps`, `weight_decay`.
      schedule: learning rate by step.
    """
    return optax.adamw(
        schedule,
        b1=recipe["b1"],
        b2=recipe["b2"],
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
    )
