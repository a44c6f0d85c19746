"""Reads PyTorch's files without PyTorch, and without running code in them.

Reading any file either gives plain data or raises `FileError`. Memory is proportional to the size
of the file: a pickle uses at most 32 MiB plus 64 bytes for each of its bytes, and at most 2 GiB; a
header or an index in JSON has at most 4 MB. A pickle takes some seconds per million opcodes.
Tensors are read on access.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.errors import naming
from replk_jax.io.safetensors import SafetensorsFile, is_safetensors
from replk_jax.io.tensors import StoredTensor
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

    Each file is opened once, and parsed once, on the first access.

    Args:
      path: of a file; of the index of a checkpoint in shards (`model.safetensors.index.json`); or
        of a folder with one of these under the names of Hugging Face's libraries.

    Attributes:
      path: as given.

    Raises:
      UnknownFolderError: a folder without any known file.
      FileError: not a regular file, one shard of several, or another folder without weights.
      OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file_path = find_file(path)
        self._file = ByteFile(self._file_path)

    @functools.cached_property
    def metadata(self) -> Mapping[str, str]:
        """The metadata strings of a .safetensors file; empty for other files.

        Raises:
          FileError: a .safetensors file that is damaged.
        """
        with naming(self._file_path):
            return {} if self._safetensors is None else self._safetensors.metadata

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors of a .safetensors file by name; empty for other files.

        Raises:
          FileError: a .safetensors file that is damaged.
        """
        with naming(self._file_path):
            return {} if self._safetensors is None else self._safetensors.tensors

    @functools.cached_property
    def contents(self) -> Contents:
        """The contents of the file; for .safetensors files and shards, the tensors by name.

        The first bytes of a file identify its format. Tensors are checked, but not read.

        Nothing that the file names is imported or called. A `Placeholder` represents an object of
        a class, and the result of a function call, with `called=True` unless the function is known
        to only make data. A file is rejected if it calls functions that run programs or code, load
        modules, or open files or connections (see `call_policy`).

        The contents are a tree of at most 100 levels. Placeholders with `omitted` set replace
        cycles, deeper levels, and integers of over 4096 bits.

        Raises:
          FileError: a file that is damaged, in another format, malicious, or not a container (such
            as a pickled module); an index whose shards or tensors are missing.
          OSError: a shard cannot be opened.
        """
        with naming(self._file_path):
            if self._shard_of_tensor is not None:
                return read_shards(self._file_path, self._shard_of_tensor, _read_shard)
            return _parse(self._file, self._safetensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the checkpoint: one file, or an index and its shards.

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
    """The contents of one file.

    Args:
      file: to read.
      safetensors: the same file, if it has that format.
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
