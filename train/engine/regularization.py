"""Terms of the loss that depend on the parameters only."""

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
    """RepVGG's penalty: weight_decay / 2 * `custom_l2`, float32 ()."""
    return lambda params, batch_stats: weight_decay / 2 * custom_l2(params, batch_stats)


def custom_l2(params: Any, batch_stats: Any) -> jax.Array:
    """A squared norm of RepVGG's merged kernels (`get_custom_L2` of the official code).

    The batch norms of a block's 3 x 3 kernel K3 and 1 x 1 kernel K1 multiply each output channel by
    t = scale / sqrt(var + eps), which has no gradient here. Off its centre, the merged kernel
    depends on K3 only, and the squares of K3 are added. At the centre C, the term is

        (K3_C t3 + K1 t1)^2 / (t3^2 + t1^2),

    normalised to the scale of the square of a single kernel.

    Args:
      params: of the network.
      batch_stats: its running statistics.

    Returns:
      The sum over all blocks, float32 (). `custom_l2_penalty` makes it a term of the loss, which
      replaces the weight decay of `penalised_kernels`.

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
    """Paths of the kernels in `custom_l2`.

    Raises:
      RunError: there are none.
    """
    branches = (_DENSE, _POINTWISE)
    blocks = _blocks(flatten_dict(params))
    return frozenset((*block, branch, *_KERNEL) for block in blocks for branch in branches)


def _blocks(flat_params: dict[Path, Any]) -> list[Path]:
    """Paths of the blocks whose 3 x 3 and 1 x 1 branches have a batch norm each.

    Raises:
      RunError: there are none, or there are RepVGG blocks of another kind.
    """

    def blocks_with(branch: str) -> set[Path]:
        end = (branch, *_SCALE)
        return {path[: -len(end)] for path in flat_params if path[-len(end) :] == end}

    blocks = blocks_with(_DENSE) & blocks_with(_POINTWISE)
    all_blocks = {
        path[:i] for path in flat_params for i, part in enumerate(path) if part.startswith("rbr_")
    }
    if not blocks or blocks != all_blocks:
        raise RunError(
            "config.optimizer.custom_l2 needs RepVGG blocks with parallel 3x3 and 1x1 branches and "
            "a batch norm in each. Not all blocks of this network have them: turn it off."
        )
    return sorted(blocks)
