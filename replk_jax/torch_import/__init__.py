"""Reads, converts and writes weights of the official PyTorch implementations.

Modules outside this package import from here only.
"""

from replk_jax.torch_import.convert import convert_state_dict
from replk_jax.torch_import.entries import Selection
from replk_jax.torch_import.folders import UnknownFolderError
from replk_jax.torch_import.load import load_contents, load_torch
from replk_jax.torch_import.metadata import find_metadata
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.reader import WeightsFile
from replk_jax.torch_import.recognition import (
    Recognized,
    infer_architecture,
    network_class,
    recognize,
)
from replk_jax.torch_import.save import TORCH_ENDINGS, check_published, save_torch
from replk_jax.torch_import.torch_files import Contents

__all__ = [
    "TORCH_ENDINGS",
    "Contents",
    "Placeholder",
    "Recognized",
    "Selection",
    "UnknownFolderError",
    "WeightsFile",
    "check_published",
    "convert_state_dict",
    "find_metadata",
    "infer_architecture",
    "load_contents",
    "load_torch",
    "network_class",
    "recognize",
    "save_torch",
]
