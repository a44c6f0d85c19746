"""Reads PyTorch's files without PyTorch, and without running what is in them.

Whatever a file holds, reading it either gives plain data or raises `FileError`. Memory is in
proportion to the file: its pickle takes at most 32 MiB and 64 bytes for each of its own bytes, and
never more than 2 GiB; a header or an index in JSON has at most 4 MB. Time is some seconds for each
million instructions of the pickle. Tensors are read when they are asked for.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.errors import FileError, naming
from replk_jax.io.safetensors import is_safetensors, read_metadata, read_safetensors
from replk_jax.torch_import.folders import find_file, is_pytorch_folder
from replk_jax.torch_import.other_formats import (
    START_BYTES,
    explain_file,
    is_part_of_distributed,
)
from replk_jax.torch_import.shards import read_index, read_shards
from replk_jax.torch_import.torch_files import read_legacy, read_zip

__all__ = ["FileError", "is_pytorch_folder", "metadata", "read", "source_files"]


def read(path: str | os.PathLike) -> Any:
    """The contents of a .pth, .pt, .bin or .safetensors file, or of the shards of a checkpoint.

    The format of a file is recognized by its bytes. Tensors are checked, but not yet read.

    Nothing that the file names is imported or called. For an object of a class there is a
    `Placeholder`, and also for what a call of a function would have given, with `called=True`
    unless that is known to make data only. A file that calls what runs programs or code, loads
    modules, or opens files or connections is rejected (see `call_policy`).

    Args:
      path: of a file; of the index of a checkpoint in shards (`model.safetensors.index.json`); or
        of a folder that has one of these by the names that Hugging Face's libraries use.

    Returns:
      A dict, list or tuple of dict, list, tuple, set, frozenset, int, float, bool, None, str,
      bytes, `StoredTensor`, `UnreadableTensor` and `Placeholder`. It is a tree of at most 100
      levels: what contains itself, or is nested deeper, is replaced by a `Placeholder` with
      `omitted` set, and so is an integer of over 4096 bits. Of .safetensors files, and of
      shards, the tensors by name.

    Raises:
      FileError: a file that is damaged, in another format, made to do harm, or of something
        other than a container, such as a whole module; one shard of several; an index whose
        shards or tensors are missing; a folder without a checkpoint.
      OSError: it cannot be opened.
    """
    with naming(path):
        file_path = find_file(path)
    with naming(file_path):
        file = ByteFile(file_path)
        places = read_index(file)
        if places is None:
            return _decoder(file)(file)
        return read_shards(file_path, places, _read_one)


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The strings that a .safetensors file holds beside its tensors; no other file has any.

    Args:
      path: as in `read`. An index has none.

    Raises:
      FileError: a .safetensors file that is damaged; a folder without a checkpoint; one shard of
        several.
      OSError: it cannot be opened.
    """
    with naming(path):
        file_path = find_file(path)
    with naming(file_path):
        file = ByteFile(file_path)
        return read_metadata(file) if is_safetensors(file) else {}


def source_files(path: str | os.PathLike) -> tuple[Path, ...]:
    """The files that `read(path)` reads: one, or an index and its shards.

    Raises:
      FileError, OSError: as `read`, as far as that can be seen without reading tensors.
    """
    with naming(path):
        file_path = find_file(path)
    with naming(file_path):
        places = read_index(ByteFile(file_path)) or {}
    return file_path, *(file_path.parent / name for name in sorted(set(places.values())))


def _read_one(path: Path) -> Any:
    file = ByteFile(path)
    with naming(path):
        return _decoder(file)(file)


def _decoder(file: ByteFile) -> Callable[[ByteFile], Any]:
    start = bytes(file.read(0, min(file.size, START_BYTES)))
    name = os.path.basename(file.path)
    if is_part_of_distributed(name):
        raise ValueError(explain_file(name, start))
    if is_safetensors(file):
        return read_safetensors
    if start.startswith(b"PK"):
        return read_zip
    if start.startswith(b"\x80"):
        return read_legacy
    raise ValueError(explain_file(name, start))
