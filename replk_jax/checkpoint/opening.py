"""Opens checkpoints of all formats."""

import os
from pathlib import Path

from replk_jax.checkpoint.nearby import pointing_to_checkpoint
from replk_jax.checkpoint.orbax_format import OrbaxCheckpoint, is_own_folder
from replk_jax.checkpoint.safetensors_format import SafetensorsCheckpoint, is_own_file
from replk_jax.checkpoint.torch_format import TorchCheckpoint
from replk_jax.torch_import import UnknownFolderError, WeightsFile


def open_checkpoint(
    path: str | os.PathLike,
) -> OrbaxCheckpoint | SafetensorsCheckpoint | TorchCheckpoint:
    """Opens a checkpoint without reading its tensors.

    Raises:
      ValueError, OSError: no such checkpoint, or an invalid one.
    """
    path = Path(path)
    if is_own_folder(path):
        return OrbaxCheckpoint(path)
    with pointing_to_checkpoint(path):
        file = _open_file(path)
        is_own = is_own_file(file)
    return SafetensorsCheckpoint(path, file) if is_own else TorchCheckpoint(path, file)


def _open_file(path: Path) -> WeightsFile:
    try:
        return WeightsFile(path)
    except UnknownFolderError:
        fault = "is empty"
        if any(path.iterdir()):
            fault = "has neither a description of this package nor weights of PyTorch"
        raise ValueError(f"{path} is not a checkpoint: it {fault}.") from None
