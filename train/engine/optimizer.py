"""Optimizers: AdamW or SGD, which parameters decay, and learning rates by layer."""

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax

from train.engine.regularization import Path, penalised_kernels
from train.errors import RunError

Params = Any

OPTIMIZERS = ("adamw", "sgd")


class LayeredNetwork(Protocol):
    """A network whose parameters are in layers and in stages, both counted from the image.

    Attributes:
      num_layers: number of layers; the last has the head.
      stage_channels: of each stage's output. There are two more groups than stages: the first is
        the stem, the last has the final norm and the head.
    """

    @property
    def num_layers(self) -> int: ...

    @property
    def stage_channels(self) -> tuple[int, ...]: ...

    def layer_of(self, path: Path) -> int:
        """The layer of a parameter; ValueError for a path that is in none."""
        ...

    def stage_of(self, path: Path) -> int:
        """The group of a parameter: 0 the stem, s the s-th stage, then the head."""
        ...


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
    """AdamW or SGD with weight decay, and on request clipping and learning rates by parameter.

    AdamW (Loshchilov & Hutter, arXiv:1711.05101) decays apart from the moments. SGD is PyTorch's:
    the decay is part of the gradient, and so of the momentum.

    Args:
      name: one of `OPTIMIZERS`.
      schedule: learning rate by step.
      weight_decay: of the parameters that `decayed` selects.
      decay_of: a name of `DECAY_OF`.
      custom_l2: whether the loss has RepVGG's penalty, in place of the decay of its kernels.
      clip_norm: the norm to which longer gradients are cut; None for no limit.
      lr_factor: the factor on the learning rate of the parameter at a path; see `layer_lr_factor`.
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


# The paths of the parameters that decay, of all by path, under each value of `decay_of`.
DECAY_OF: dict[str, Callable[[dict[Path, jax.Array]], set[Path]]] = {
    # RepLKNet: no biases, no batch norms.
    "kernels": lambda params: {path for path, leaf in params.items() if leaf.ndim >= 2},
    # RepVGG decides by name: the scale of an identity branch, a batch norm of another name, decays.
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
    """The parameters that weight decay pulls to zero, as a tree of booleans.

    Args:
      params: of the network.
      decay_of: a name of `DECAY_OF`.
      custom_l2: whether to exclude the kernels that RepVGG's penalty is about.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    decaying = DECAY_OF[decay_of]({_names(keys): leaf for keys, leaf in leaves})
    if custom_l2:
        decaying -= penalised_kernels(params)
    return by_path(lambda path: path in decaying, params)


def layer_lr_factor(
    network: LayeredNetwork,
    decay: float = 1.0,
    by: Literal["layer", "stage"] = "layer",
    head_factor: float = 1.0,
) -> Callable[[Path], float]:
    """Learning rates that fall from the head to the image, and a rate of its own for the head.

    The factor of a parameter is decay ** (last - group), where the last group has the head. For
    RepLKNet the groups by layer are those of the official code. The groups by stage are a choice of
    this package: the paper (arXiv:2203.06717, appendix A) has a "stage-wise" decay for XL, and
    names no groups.

    Args:
      network: whose parameters they are.
      decay: the factor from one group to the one before it.
      by: a name of `LAYER_DECAY_BY`.
      head_factor: on the learning rate of the last group by stage: the final norm and the head.

    Returns:
      The factor on the learning rate, by the path of the parameter. It raises RunError for a path
      that is in no group.
    """
    group_of, count = LAYER_DECAY_BY[by](network)
    head = len(network.stage_channels) + 1

    def factor(path: Path) -> float:
        try:
            distance = count - 1 - group_of(path)
            return decay**distance * (head_factor if network.stage_of(path) == head else 1.0)
        except ValueError as error:
            raise RunError(f"config.optimizer.layer_decay, by {by}: {error}") from error

    return factor


# The group of a parameter, and the number of groups, under each value of `layer_decay_by`.
LAYER_DECAY_BY: dict[str, Callable[[LayeredNetwork], tuple[Callable[[Path], int], int]]] = {
    "layer": lambda network: (network.layer_of, network.num_layers),
    "stage": lambda network: (network.stage_of, len(network.stage_channels) + 2),
}


def scale_by_path(factor: Callable[[Path], float]) -> optax.GradientTransformation:
    """Multiplies the whole step of each parameter, weight decay included, by a factor.

    Args:
      factor: by the path of the parameter. What it raises is raised by `init` already.
    """

    def update(updates: Params, state: optax.OptState, params: Params = None):
        del params
        return jax.tree.map(jnp.multiply, updates, by_path(factor, updates)), state

    def init(params: Params) -> optax.OptState:
        by_path(factor, params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def by_path(value: Callable[[Path], Any], params: Params) -> Params:
    """A tree like that of the parameters, with a value for the path of each."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: value(_names(keys)), params)


def _names(keys: tuple[Any, ...]) -> Path:
    return tuple(key.key for key in keys)
