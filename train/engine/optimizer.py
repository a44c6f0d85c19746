"""Optimizers: AdamW and SGD, with weight decay and learning rates by parameter."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from replk_jax.models.network import Network
from train.engine.regularization import Path, penalised_kernels
from train.errors import RunError

Params = Any

OPTIMIZERS = ("adamw", "sgd")


def make_optimizer(
    name: Literal["adamw", "sgd"],
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay_of: str = "kernels",
    custom_l2: bool = False,
    clip_norm: float | None = None,
    lr_factor: Callable[[Path], float] | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """AdamW or SGD with weight decay, and optionally clipping and learning rates by parameter.

    AdamW's decay is decoupled from the gradient (Loshchilov & Hutter, arXiv:1711.05101). SGD is
    PyTorch's: the decay is added to the gradient, and so to the momentum.

    Args:
      name: one of `OPTIMIZERS`.
      schedule: learning rate by step.
      weight_decay: of the parameters that `decayed` selects.
      decay_of: a name in `DECAY_OF`.
      custom_l2: whether the loss has RepVGG's penalty, which replaces the decay of its kernels.
      clip_norm: the largest norm of the gradient; None for no limit.
      lr_factor: path of a parameter -> factor on its learning rate; see `layer_lr_factor`.
      b1, b2, eps: of AdamW.
      momentum, nesterov: of SGD.

    Raises:
      ValueError: an unknown name.
    """
    mask = functools.partial(decayed, decay_of=decay_of, custom_l2=custom_l2)
    parts: list[optax.GradientTransformation] = []
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(clip_norm))
    match name:
        case "adamw":
            parts.append(optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask))
        case "sgd":
            decay = optax.add_decayed_weights(weight_decay, mask)
            parts.append(optax.chain(decay, optax.sgd(schedule, momentum, nesterov)))
        case _:
            raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}; got {name!r}.")
    if lr_factor is not None:
        parts.append(scale_by_path(lr_factor))
    return optax.chain(*parts)


# By value of `decay_of`: parameters by path -> paths of those that decay.
DECAY_OF: dict[str, Callable[[dict[Path, jax.Array]], set[Path]]] = {
    # RepLKNet: neither biases nor batch norms decay.
    "kernels": lambda params: {path for path, leaf in params.items() if leaf.ndim >= 2},
    # RepVGG selects by name; the batch norm of an identity branch has another name, so it decays.
    "repvgg": lambda params: {
        path for path in params if not any("bias" in part or "bn" in part for part in path)
    },
    # mmsegmentation and mmdetection with norm_decay_mult=0: the biases of convolutions decay.
    "except_norms": lambda params: {path for path in params if not _is_of_norm(path, params)},
    "all": set,
}


def _is_of_norm(path: Path, params: dict[Path, jax.Array]) -> bool:
    """Whether a parameter is the scale or the bias of a norm, the modules that have both."""
    module, last = path[:-1], path[-1]
    return last in ("scale", "bias") and {(*module, "scale"), (*module, "bias")} <= params.keys()


def decayed(params: Params, decay_of: str, custom_l2: bool = False) -> Params:
    """The mask of weight decay: a tree of booleans like `params`.

    Args:
      params: of the network.
      decay_of: a name in `DECAY_OF`.
      custom_l2: whether to exclude the kernels of RepVGG's penalty.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    decaying = DECAY_OF[decay_of]({_names(keys): leaf for keys, leaf in leaves})
    if custom_l2:
        decaying -= penalised_kernels(params)
    return by_path(lambda path: path in decaying, params)


def layer_lr_factor(
    network: Network,
    decay: float = 1.0,
    by: Literal["layer", "stage"] = "layer",
    head_factor: float = 1.0,
) -> Callable[[Path], float]:
    """Layer-wise learning rate decay, and a factor on the learning rate of the head.

    The factor of a parameter is decay ** (last - group), where the last group has the head. For
    RepLKNet the groups by layer are those of the official code. The groups by stage are a choice of
    this package: the paper (arXiv:2203.06717, appendix A) uses a "stage-wise" decay for XL without
    defining its groups.

    Args:
      network: with the groups.
      decay: the factor from one group to the one before it.
      by: a name in `LAYER_DECAY_BY`.
      head_factor: on the learning rate of the last group by stage: the final norm and the head.

    Returns:
      A function: path of a parameter -> factor on its learning rate. It raises RunError for a path
      that is in no group.
    """
    group_of, count = LAYER_DECAY_BY[by](network)
    head = network.num_stage_groups - 1

    def factor(path: Path) -> float:
        try:
            distance = count - 1 - group_of(path)
            return decay**distance * (head_factor if network.stage_of(path) == head else 1.0)
        except ValueError as error:
            raise RunError(f"config.optimizer.layer_decay, by {by}: {error}") from error

    return factor


# By value of `layer_decay_by`: the group of a parameter, and the number of groups.
LAYER_DECAY_BY: dict[str, Callable[[Network], tuple[Callable[[Path], int], int]]] = {
    "layer": lambda network: (network.layer_of, network.num_layers),
    "stage": lambda network: (network.stage_of, network.num_stage_groups),
}


def scale_by_path(factor: Callable[[Path], float]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter, weight decay included, by a factor.

    Args:
      factor: path of a parameter -> factor. It is called for all parameters by `init`, which
        raises its errors.
    """

    def update(updates: Params, state: optax.OptState, params: Params = None):
        del params
        return jax.tree.map(jnp.multiply, updates, by_path(factor, updates)), state

    def init(params: Params) -> optax.OptState:
        by_path(factor, params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def by_path(value: Callable[[Path], Any], params: Params) -> Params:
    """Maps the paths of the parameters to a tree of values like `params`."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: value(_names(keys)), params)


def _names(keys: tuple[Any, ...]) -> Path:
    return tuple(key.key for key in keys)
