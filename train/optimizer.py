"""The papers' optimisers: AdamW or SGD, what decays, and a linear warm-up before a cosine."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.regularization import penalised_kernels

Params = Any

# Whether a parameter decays, by its path and its array, under each value of `decay_of`.
DECAY_OF: dict[str, Callable[[tuple[str, ...], jax.Array], bool]] = {
    # RepLKNet: no biases, no batch norms.
    "kernels": lambda path, leaf: leaf.ndim >= 2,
    # RepVGG goes by the names, so the scale of an identity branch, which is a batch norm under
    # another name, does decay.
    "repvgg": lambda path, leaf: not any("bias" in part or "bn" in part for part in path),
    "all": lambda path, leaf: True,
}


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


def make_optimizer(
    recipe: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimiser of a recipe.

    Args:
      recipe: `config.optimizer`, see configs/common.py.
      schedule: learning rate by step.
    """
    return {"adamw": adamw, "sgd": sgd}[recipe["name"]](recipe, schedule)


def adamw(recipe: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), whose decay bypasses the moments.

    Args:
      recipe: `b1`, `b2`, `eps`, `weight_decay`, and what `decayed` takes.
      schedule: learning rate by step.
    """
    return optax.adamw(
        schedule,
        b1=recipe["b1"],
        b2=recipe["b2"],
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
        mask=lambda params: decayed(recipe, params),
    )


def sgd(recipe: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD as PyTorch has it: the decay is part of the gradient, and so of the momentum.

    Args:
      recipe: `momentum`, `nesterov`, `weight_decay`, and what `decayed` takes.
      schedule: learning rate by step.
    """
    return optax.chain(
        optax.add_decayed_weights(
            recipe["weight_decay"], mask=lambda params: decayed(recipe, params)
        ),
        optax.sgd(schedule, momentum=recipe["momentum"], nesterov=recipe["nesterov"]),
    )


def decayed(recipe: Mapping[str, Any], params: Params) -> Params:
    """Which parameters weight decay pulls to zero, as a tree of booleans.

    Args:
      recipe: `decay_of`, a name of `DECAY_OF`; `custom_l2`, which takes the kernels that it
        penalises out.
      params: of the network.
    """
    decays = DECAY_OF[recipe["decay_of"]]
    penalised = penalised_kernels(params) if recipe["custom_l2"] else frozenset()

    def does(path, leaf):
        path = tuple(key.key for key in path)
        return decays(path, leaf) and path not in penalised

    return jax.tree_util.tree_map_with_path(does, params)
