"""The three structures in which a network's weights are published.

All three belong to one network. RepLKNet's merged ones leave batch norms standing that the merged
structure here has folded away; `replk_jax.reparameterize` takes them the rest of the way.
RepVGG's is the one here.
"""

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


def structure_of(keys: Mapping[str, Any]) -> Structure:
    """The structure that official keys tell of."""
    if not any(".lkb_reparam." in key or ".rbr_reparam." in key for key in keys):
        return Structure.TRAINING
    return Structure.FUSED if "stem.0.conv.bias" in keys else Structure.MERGED


def abstract_structure(model: nn.Module, structure: Structure) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables in one of the published structures.

    Args:
      model: in its training-time structure.
      structure: the one that is wanted.
    """
    variables = abstract_variables(model)
    if structure is Structure.TRAINING:
        return variables
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
