"""The papers' optimisers: AdamW or SGD, what decays, learning rates by layer, and the schedule."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.engine.regularization import penalised_kernels
from train.errors import RunError

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
    parts = [{"adamw": adamw, "sgd": sgd}[recipe["name"]](recipe, schedule)]
    if recipe["clip_norm"] is not None:
        parts.insert(0, optax.clip_by_global_norm(recipe["clip_norm"]))
    if recipe["layer_decay"] != 1:
        parts.append(layer_wise(recipe["layer_decay"], recipe["layer_decay_by"]))
    return optax.chain(*parts)


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


def layer_wise(decay: float, by: str = "layer") -> optax.GradientTransformation:
    """Smaller steps for the layers that are nearer to the image, as when a network is fine-tuned.

    The whole step of a parameter, weight decay included, is multiplied by its factor of
    `layer_scales`.

    Args:
      decay: the factor from one group of parameters to the one before it.
      by: which groups, a name of `LAYER_DECAY_BY`.

    Raises:
      RunError: from `init`, for parameters that are in no group.
    """

    def update(updates, state, params=None):
        del params
        return jax.tree.map(jnp.multiply, updates, layer_scales(updates, decay, by)), state

    def init(params):
        layer_scales(params, decay, by)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def layer_scales(params: Params, decay: float, by: str = "layer") -> Params:
    """The factor on the learning rate of every parameter of a RepLKNet: decay ** distance.

    The distance is counted in groups from that of the final norm and the classifier, whose factor
    is 1. The groups by layer are the official code's. Those by stage are a choice of this package:
    the paper (arXiv:2203.06717, appendix A) has a "stage-wise" decay for XL, and names no groups.

    Args:
      params: of the network; only their paths matter.
      decay: the factor from one group to the one before it.
      by: which groups, a name of `LAYER_DECAY_BY`: see `layer_of` and `stage_of`.

    Raises:
      RunError: a parameter is in no group, as in networks of other families.
    """
    group_of, last_group = LAYER_DECAY_BY[by]
    last = last_group(params)

    def scale(path, _):
        path = tuple(key.key for key in path)
        group = last if path[0] in ("norm", "head") else group_of(path)
        return decay ** (last - group)

    return jax.tree_util.tree_map_with_path(scale, params)


def layer_of(path: tuple[str, ...]) -> int:
    """The group from 0 to 12 of a parameter below the final norm, in the official code's fourteen.

    Stem 0; stages 0 and 1 with the transition after each, 1 and 2; stage 2 in fours of its blocks,
    3 to 11, the transition after it 11; stage 3, 12. The numbers are those of depths 2, 2, 18, 2,
    whatever the model.

    Raises:
      RunError: it is in no RepLKNet of at most four stages.
    """
    match _part(path):
        case "stem", _:
            return 0
        case (("stages" | "transitions"), ("0" | "1" as number)):
            return 1 + int(number)
        case "stages", "2":
            block = re.fullmatch(r"blocks_(\d+)", path[1])
            return min(11, 3 + int(block[1]) // 4) if block else 11
        case "transitions", "2":
            return 11
        case "stages", "3":
            return 12
    raise _not_a_replknet(path)


def stage_of(path: tuple[str, ...]) -> int:
    """The group of a parameter below the final norm, where each stage is a group.

    A choice of this package: the paper does not say how its stage-wise decay groups parameters.
    Stem 0; stage s with the transition after it, 1 + s, for any number of stages.

    Raises:
      RunError: it is in no RepLKNet.
    """
    match _part(path):
        case "stem", _:
            return 0
        case (("stages" | "transitions"), number) if number:
            return 1 + int(number)
    raise _not_a_replknet(path)


# How parameters below the final norm and classifier are grouped under each value of
# `layer_decay_by`, and the group of these two in a tree of parameters.
LAYER_DECAY_BY: dict[str, tuple[Callable[[tuple[str, ...]], int], Callable[[Params], int]]] = {
    "layer": (layer_of, lambda params: 13),
    "stage": (stage_of, lambda params: 1 + sum(name.startswith("stages_") for name in params)),
}


def _part(path: tuple[str, ...]) -> tuple[str, str]:
    """The first word and number of a path: ("stages", "2") of stages_2/blocks_0/..."""
    return re.fullmatch(r"([a-z]+)_?(\d*).*", path[0]).groups()


def _not_a_replknet(path: tuple[str, ...]) -> RunError:
    return RunError(
        "config.optimizer.layer_decay is for RepLKNets (by layer, of at most four stages), which "
        f"have no {path[0]}: leave it 1."
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
