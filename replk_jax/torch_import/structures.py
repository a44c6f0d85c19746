"""The structures in which the weights of a network are published.

RepLKNet's merged and fused structures keep batch norms that the merged structure of this package
folds; `replk_jax.reparameterize` folds them. RepVGG's merged structure is the same as here.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from replk_jax.reparam import merge_branches


class Structure(enum.Enum):
    """The degree of re-parameterization of a PyTorch file."""

    TRAINING = "training-time"
    MERGED = "merged"
    """After `structural_reparam()` or RepVGG's `switch_to_deploy()`: merged parallel kernels."""
    FUSED = "merged, batch norms fused"
    """After `deep_fuse_BN()` as well: batch norms folded into the convolutions before them."""
    FUSED_BRANCHES = "unmerged, batch norms fused"
    """After `deep_fuse_BN()` only, or another tool that fuses batch norms: parallel kernels are
    separate, each with a bias."""

    @property
    def has_branches(self) -> bool:
        """Whether parallel kernels, if the network has any, are separate."""
        return self in (Structure.TRAINING, Structure.FUSED_BRANCHES)


@dataclasses.dataclass(frozen=True)
class StructureNames:
    """The official names that identify the structure of a family's weights.

    Attributes:
      fused_bias: name of the first convolution's bias, which exists if its batch norm is fused.
      merged_kernel: name of the module of every merged kernel; None if none is ever merged.
    """

    fused_bias: str
    merged_kernel: str | None

    def structure_of(self, keys: Mapping[str, Any]) -> Structure:
        """The structure of weights in official names."""
        merged = any(self.merged_kernel in key.split(".") for key in keys)
        if self.fused_bias in keys:
            return Structure.FUSED if merged else Structure.FUSED_BRANCHES
        return Structure.MERGED if merged else Structure.TRAINING


def in_structure(variables: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Shapes and dtypes of variables in one of the published structures.

    Args:
      variables: shapes and dtypes in the training-time structure.
      structure: the published structure.
    """
    if structure is Structure.TRAINING:
        return dict(variables)
    if structure is Structure.FUSED_BRANCHES:
        return _fused(variables)
    merged = jax.eval_shape(merge_branches, variables)
    return merged if structure is Structure.MERGED else _fused(merged)


def _fused(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the batch norm of each convolution by a bias of the convolution."""
    fused = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        *module, parent, last = path
        if parent != "bn":
            fused[path] = leaf
        elif last == "bias":
            fused[(*module, "conv", "bias")] = leaf
    return traverse_util.unflatten_dict(fused)
