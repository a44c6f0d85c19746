"""Structural re-parameterization of variable trees."""

from replk_jax.reparam.blocks import Block, Form, register_block
from replk_jax.reparam.equivalence import Equivalence, check_equivalence
from replk_jax.reparam.transform import merge_branches, reparameterize

__all__ = [
    "Block",
    "Equivalence",
    "Form",
    "check_equivalence",
    "merge_branches",
    "register_block",
    "reparameterize",
]
