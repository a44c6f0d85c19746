"""RepLKNet and structural re-parameterization in JAX."""

from replk_jax.accounting import Summary, summary
from replk_jax.models import RepLKNet, RepLKNetArchitecture, create_model, list_models
from replk_jax.ops import DepthwiseConv2D, depthwise_conv2d
from replk_jax.reparam import (
    Equivalence,
    check_equivalence,
    merge_small_kernels,
    reparameterize,
)
from replk_jax.torch_import import convert_state_dict

__version__ = "0.1.0"

__all__ = [
    "DepthwiseConv2D",
    "Equivalence",
    "RepLKNet",
    "RepLKNetArchitecture",
    "Summary",
    "check_equivalence",
    "convert_state_dict",
    "create_model",
    "depthwise_conv2d",
    "list_models",
    "merge_small_kernels",
    "reparameterize",
    "summary",
]
