"""Reads PyTorch's files without PyTorch, and without running what is in them.

Whatever a file holds, reading it either gives plain data or raises `FileError`, in some seconds
and 300 MB of memory at the very most: its pickle may make 128 MB, its JSON have 4 MB. Tensors,
which may be larger, are read when they are asked for.
"""

import os
from collections.abc import Callable
from typing import Any

from replk_jax.torch_import.byte_file import ByteFile, FileError, naming
from replk_jax.torch_import.safetensors import is_safetensors, read_metadata, read_safetensors
from replk_jax.torch_import.torch_files import read_legacy, read_zip

__all__ = ["FileError", "metadata", "read"]

_TAR_MAGIC = slice(257, 262)


def read(path: str | os.PathLike) -> Any:
    """The contents of a .pth, .pt, .bin or .safetensors file.

    Its format is told from its bytes. Tensors are looked at and checked, but not yet read.

    Nothing that the file names is imported or called. For an object of a class there is a
    `Placeholder`, and also for what a call of a function would have given, with `called=True`
    unless that is known to make data only. If it is a function of Python's standard library
    that is called, the file is refused: what runs commands, opens files or evaluates code is
    there, and no checkpoint needs it.

    Args:
      path: of the file.

    Returns:
      A dict, list or tuple of dict, list, tuple, set, frozenset, int, float, bool, None, str,
      bytes, `StoredTensor` and `Placeholder`, at most 100 levels deep, that does not contain
      itself. Of a .safetensors file, its tensors by name.

    Raises:
      FileError: a file that is damaged, in another format, made to do harm, or of something
        other than a container, such as a whole module.
      OSError: it cannot be opened.
    """
    file = ByteFile(path)
    with naming(path):
        return _decoder(file)(file)


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The strings that a .safetensors file holds beside its tensors; no other file has any.

    Raises:
      FileError: a .safetensors file that is damaged.
      OSError: it cannot be opened.
    """
    file = ByteFile(path)
    with naming(path):
        return read_metadata(file) if is_safetensors(file) else {}


def _decoder(file: ByteFile) -> Callable[[ByteFile], Any]:
    start = bytes(file.read(0, min(file.size, _TAR_MAGIC.stop)))
    if start.startswith(b"PK"):
        return read_zip
    if is_safetensors(file):
        return read_safetensors
    if start[_TAR_MAGIC] == b"ustar":
        raise ValueError(
            "it is a tar archive, as PyTorch wrote before version 0.2. In PyTorch, load it and "
            "save it again."
        )
    if start.startswith(b"\x80"):
        return read_legacy
    raise ValueError(
        f"it is neither a PyTorch file nor a .safetensors file: it begins with {start[:16]!r}. "
        "A download that failed often leaves a page of text instead."
    )
