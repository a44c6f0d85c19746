"""Checkpoints: a model, its variables, the preprocessing and the class names.

This package writes two formats: a .safetensors file, whose tensor names are paths in the variables,
and an Orbax checkpoint, a folder, which training writes. Both contain the same description.
PyTorch checkpoints can be read as well.
"""

from replk_jax.checkpoint.loading import load, load_into, read_description
from replk_jax.checkpoint.opening import open_checkpoint
from replk_jax.checkpoint.orbax_format import OrbaxCheckpoint
from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.safetensors_format import SafetensorsCheckpoint
from replk_jax.checkpoint.saving import save
from replk_jax.checkpoint.torch_format import TorchCheckpoint

__all__ = [
    "Checkpoint",
    "OrbaxCheckpoint",
    "SafetensorsCheckpoint",
    "TorchCheckpoint",
    "load",
    "load_into",
    "open_checkpoint",
    "read_description",
    "save",
]
