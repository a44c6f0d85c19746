"""Reads PyTorch's files without PyTorch, and without running what is in them.

Whatever a file holds, reading it either gives plain data or raises `FileError`. Memory is in
proportion to the file: its pickle takes at most 32 MiB and 64 bytes for each of its own bytes, and
never more than 2 GiB; a header or an index in JSON has at most 4 MB. Time is some seconds for each
million instructions of the pickle. Tensors are read when they are asked for.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.errors import naming
from replk_jax.io.safetensors import SafetensorsFile, is_safetensors
from replk_jax.torch_import.folders import find_file
from replk_jax.torch_import.other_formats import (
    START_BYTES,
    explain_file,
    is_part_of_distributed,
)
from replk_jax.torch_import.shards import read_index, read_shards
from replk_jax.torch_import.torch_files import Contents, read_legacy, read_zip


class WeightsFile:
    """A .pth, .pt, .bin or .safetensors file, or the index of a checkpoint in shards.

    Each file is opened once. What it holds is parsed once, when it is asked for.

    Args:
      path: of a file; of the index of a checkpoint in shards (`model.safetensors.index.json`); or
        of a folder that has one of these by the names that Hugging Face's libraries use.

    Attributes:
      path: as it was given.

    Raises:
      UnknownFolderError: a folder in which nothing is known.
      FileError: not a regular file, one shard of several, or another folder without weights.
      OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file_path = find_file(path)
        self._file = ByteFile(self._file_path)

    @functools.cached_property
    def metadata(self) -> Mapping[str, str]:
        """The strings that a .safetensors file holds beside its tensors; no other file has any.

        Raises:
          FileError: a .safetensors file that is damaged.
        """
        with naming(self._file_path):
            return {} if self._safetensors is None else self._safetensors.metadata

    @functools.cached_property
    def contents(self) -> Contents:
        """What the file holds; of .safetensors files, and of shards, the tensors by name.

        The format of a file is recognized by its bytes. Tensors are checked, but not yet read.

        Nothing that the file names is imported or called. For an object of a class there is a
        `Placeholder`, and also for what a call of a function would have given, with `called=True`
        unless that is known to make data only. A file that calls what runs programs or code, loads
        modules, or opens files or connections is rejected (see `call_policy`).

        It is a tree of at most 100 levels: what contains itself, or is nested deeper, is replaced
        by a `Placeholder` with `omitted` set, and so is an integer of over 4096 bits.

        Raises:
          FileError: a file that is damaged, in another format, made to do harm, or of something
            other than a container, such as a whole module; an index whose shards or tensors are
            missing.
          OSError: a shard cannot be opened.
        """
        with naming(self._file_path):
            if self._shard_of_tensor is not None:
                return read_shards(self._file_path, self._shard_of_tensor, _read_shard)
            return _parse(self._file, self._safetensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of: one, or an index and its shards.

        Raises:
          FileError: an index that is damaged.
        """
        with naming(self._file_path):
            shards = sorted(set((self._shard_of_tensor or {}).values()))
        return self._file_path, *(self._file_path.parent / name for name in shards)

    @functools.cached_property
    def _shard_of_tensor(self) -> dict[str, str] | None:
        """As `read_index`."""
        return read_index(self._file)

    @functools.cached_property
    def _safetensors(self) -> SafetensorsFile | None:
        return _open_safetensors(self._file)


def read(path: str | os.PathLike) -> Contents:
    """The contents of a file; see `WeightsFile`."""
    return WeightsFile(path).contents


def _read_shard(path: Path) -> Contents:
    file = ByteFile(path)
    with naming(path):
        return _parse(file, _open_safetensors(file))


def _open_safetensors(file: ByteFile) -> SafetensorsFile | None:
    return SafetensorsFile(file) if is_safetensors(file) else None


def _parse(file: ByteFile, safetensors: SafetensorsFile | None) -> Contents:
    """What one file holds.

    Args:
      file: to read.
      safetensors: the same file, if it is of that format.
    """
    start = bytes(file.read(0, min(file.size, START_BYTES)))
    name = os.path.basename(file.path)
    if is_part_of_distributed(name):
        raise ValueError(explain_file(name, start))
    if safetensors is not None:
        return safetensors.tensors
    if start.startswith(b"PK"):
        return read_zip(file)
    if start.startswith(b"\x80"):
        return read_legacy(file)
    raise ValueError(explain_file(name, start))
