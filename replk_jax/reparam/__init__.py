"""Structural re-parameterization of variable trees."""

from replk_jax.reparam.block import Block, Form, conv_of, norm_of
from replk_jax.reparam.equivalence import Equivalence, check_equivalence
from replk_jax.reparam.inference import for_inference
from replk_jax.reparam.table import register_block
from replk_jax.reparam.transform import merge_branches, reparameterize

__all__ = [
    "Block",
    "Equivalence",
    "Form",
    "check_equivalence",
    "conv_of",
    "for_inference",
    "merge_branches",
    "norm_of",
    "register_block",
    "reparameterize",
]
