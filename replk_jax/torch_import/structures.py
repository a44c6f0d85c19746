"""The structures in which a network's weights are published.

All belong to one network. RepLKNet's merged and fused ones keep batch norms that the merged
structure here has folded away; `replk_jax.reparameterize` takes them the rest of the way.
RepVGG's merged one is the one here.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import merge_branches


class Structure(enum.Enum):
    """How far re-parameterization has gone in a PyTorch file."""

    TRAINING = "training-time"
    MERGED = "merged"
    """After `structural_reparam()`, or RepVGG's `switch_to_deploy()`: parallel kernels are one."""
    FUSED = "merged, batch norms fused"
    """After `deep_fuse_BN()` as well: those behind convolutions are folded into them."""
    FUSED_BRANCHES = "unmerged, batch norms fused"
    """After `deep_fuse_BN()` alone, or another tool that fuses batch norms: parallel kernels are
    still apart, each with a bias."""

    @property
    def has_branches(self) -> bool:
        """Whether parallel kernels are still apart, in a network that has such."""
        return self in (Structure.TRAINING, Structure.FUSED_BRANCHES)


@dataclasses.dataclass(frozen=True)
class StructureNames:
    """The official names by which the structure of a family's weights is known.

    Attributes:
      fused_bias: that the first convolution has when its batch norm is fused.
      merged_kernel: a module in the name of every merged kernel; None if none is ever merged.
    """

    fused_bias: str
    merged_kernel: str | None

    def structure_of(self, keys: Mapping[str, Any]) -> Structure:
        """The structure of weights in official names."""
        merged = any(self.merged_kernel in key.split(".") for key in keys)
        if self.fused_bias in keys:
            return Structure.FUSED if merged else Structure.FUSED_BRANCHES
        return Structure.MERGED if merged else Structure.TRAINING


def abstract_structure(model: nn.Module, structure: Structure) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables in one of the published structures.

    Args:
      model: in its training-time structure.
      structure: the one that is wanted.
    """
    variables = abstract_variables(model)
    if structure is Structure.TRAINING:
        return variables
    if structure is Structure.FUSED_BRANCHES:
        return _fused(variables)
    merged = jax.eval_shape(merge_branches, variables)
    return merged if structure is Structure.MERGED else _fused(merged)


def _fused(variables: Mapping[str, Any]) -> dict[str, Any]:
    """With each convolution's batch norm gone, but for its bias, which is the convolution's."""
    fused = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        *module, parent, last = path
        if parent != "bn":
            fused[path] = leaf
        elif last == "bias":
            fused[(*module, "conv", "bias")] = leaf
    return traverse_util.unflatten_dict(fused)
