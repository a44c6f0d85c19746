"""Terms of the loss that are of the parameters alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from replk_jax.reparam.algebra import BATCH_NORM_EPSILON
from train.errors import RunError

Path = tuple[str, ...]
Penalty = Callable[[Any, Any], jax.Array]  # of the parameters and the running statistics

_DENSE, _POINTWISE = "rbr_dense", "rbr_1x1"
_KERNEL, _SCALE, _VARIANCE = ("conv", "kernel"), ("bn", "scale"), ("bn", "var")


def custom_l2_penalty(weight_decay: float) -> Penalty:
    """RepVGG's term of the loss: half the weight decay times `custom_l2`, float32 ()."""
    return lambda params, batch_stats: weight_decay / 2 * custom_l2(params, batch_stats)


def custom_l2(params: Any, batch_stats: Any) -> jax.Array:
    """The squared norm of what RepVGG's branches merge to (`get_custom_L2` of the official code).

    The batch norms of a block's 3 x 3 kernel K3 and 1 x 1 kernel K1 multiply each output channel by
    t = scale / sqrt(var + eps), taken as constants. Outside its centre the merged kernel is K3's
    alone, whose plain square counts. At its centre C,

        (K3_C t3 + K1 t1)^2 / (t3^2 + t1^2),

    divided so that it is as large as the square of a single kernel.

    Args:
      params: of the network.
      batch_stats: its running statistics.

    Returns:
      The sum over all such blocks. Times half the weight decay, and in the loss, it takes the
      place of the decay of `penalised_kernels`.

    Raises:
      RunError: the network has no such blocks.
    """
    params, batch_stats = flatten_dict(params), flatten_dict(batch_stats)

    def branch(path: Path) -> tuple[jax.Array, jax.Array]:
        deviation = jnp.sqrt(batch_stats[path + _VARIANCE] + BATCH_NORM_EPSILON)
        t = jax.lax.stop_gradient(params[path + _SCALE] / deviation)
        return params[path + _KERNEL], t.reshape(1, 1, 1, -1)

    total = jnp.zeros(())
    for block in _blocks(params):
        (k3, t3), (k1, t1) = branch((*block, _DENSE)), branch((*block, _POINTWISE))
        centre = k3[1:2, 1:2]
        total += jnp.sum(k3**2) - jnp.sum(centre**2)
        total += jnp.sum((centre * t3 + k1 * t1) ** 2 / (t3**2 + t1**2))
    return total


def penalised_kernels(params: Any) -> frozenset[Path]:
    """Paths of the kernels that `custom_l2` is about.

    Raises:
      RunError: there are none.
    """
    branches = (_DENSE, _POINTWISE)
    blocks = _blocks(flatten_dict(params))
    return frozenset((*block, branch, *_KERNEL) for block in blocks for branch in branches)


def _blocks(flat_params: dict[Path, Any]) -> list[Path]:
    """Paths of the blocks whose 3 x 3 and 1 x 1 branches have a batch norm each.

    Raises:
      RunError: there are none, or there are blocks of another kind beside them.
    """

    def above(branch: str) -> set[Path]:
        end = (branch, *_SCALE)
        return {path[: -len(end)] for path in flat_params if path[-len(end) :] == end}

    blocks = above(_DENSE) & above(_POINTWISE)
    of_any_kind = {
        path[:i] for path in flat_params for i, part in enumerate(path) if part.startswith("rbr_")
    }
    if not blocks or blocks != of_any_kind:
        raise RunError(
            "config.optimizer.custom_l2 is for RepVGG's blocks of parallel 3x3 and 1x1 branches, "
            "each with a batch norm, and not all blocks of this network are such: leave it off."
        )
    return sorted(blocks)
