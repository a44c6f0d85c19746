"""Writes networks in the formats of this package."""

import os
from pathlib import Path

from replk_jax.checkpoint.orbax_format import write_folder
from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.safetensors_format import write_file


def save(path: str | os.PathLike, network: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a network, atomically.

    Args:
      path: of a .safetensors file, by its ending, or of the folder of an Orbax checkpoint.
      network: to write.
      overwrite: replace an existing file or folder, once the new one is complete.

    Raises:
      FileExistsError: the path exists, and `overwrite` is not set.
      OSError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already, and is left as it is.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute().parent} to write to.")
    if path.suffix.lower() == ".safetensors":
        write_file(path, network)
    else:
        write_folder(path.absolute(), network)
