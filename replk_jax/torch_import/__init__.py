"""Weights of the official PyTorch implementations."""

from replk_jax.torch_import.convert import convert_state_dict

__all__ = ["convert_state_dict"]
