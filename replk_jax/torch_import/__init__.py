"""Weights of the official PyTorch implementations: read, converted and written back."""

from replk_jax.torch_import.convert import convert_state_dict
from replk_jax.torch_import.load import Recognized, infer_architecture, load_torch, save_torch

__all__ = ["Recognized", "convert_state_dict", "infer_architecture", "load_torch", "save_torch"]
