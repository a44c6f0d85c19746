"""Networks in files: a model, its variables, and how its images are prepared.

Two formats of this package: a single .safetensors file, whose tensors are named by their path
in the variables, and an Orbax checkpoint, a folder, such as training writes. Both carry the
same description. PyTorch checkpoints are read as well.
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
