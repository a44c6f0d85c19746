"""Writes state dicts that PyTorch reads."""

import dataclasses
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from replk_jax.io.files import replacing
from replk_jax.io.tensors import TensorLike, contiguous_strides, dtype_code, element_bytes
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.storage_classes import STORAGE_CLASSES

_ALIGNMENT = 64  # of each storage in a zip archive, so that it can be mapped into memory
_PADDING_ID = 0x4246  # of the extra field that PyTorch pads with as well
_ZIP_HEADER_BYTES = 30
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # constant, so that equal weights give equal files


def write_torch(path: str | os.PathLike, state_dict: Mapping[str, TensorLike]) -> None:
    """Writes a .pth file that `torch.load(path, weights_only=True)` reads as an OrderedDict.

    The same arrays in the same order give the same bytes. An existing file is replaced once the
    new one is complete. An incomplete file is removed.

    Args:
      path: of the file, in an existing folder.
      state_dict: tensors by name. One at a time is converted to an array.

    Raises:
      ValueError: a dtype that PyTorch has no storage for, with the name of the tensor.
      OSError: the file cannot be written.
    """
    classes = [dtype_code(STORAGE_CLASSES, name, value) for name, value in state_dict.items()]
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_member(archive, "data.pkl", _pickle(state_dict, classes))
        _write_member(archive, "byteorder", b"little")
        for key, (name, value) in enumerate(state_dict.items()):
            _write_member(archive, f"data/{key}", element_bytes(name, value))
        _write_member(archive, "version", b"3\n")


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    member = zipfile.ZipInfo(f"archive/{name}", _ZIP_DATE)
    member.create_system = 3  # on every system
    start = archive.start_dir + _ZIP_HEADER_BYTES + len(member.filename) + 4
    padding = -start % _ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    archive.writestr(member, data)


def _pickle(state_dict: Mapping[str, TensorLike], classes: list[str]) -> bytes:
    """PyTorch's pickle of an OrderedDict of tensors, each a whole storage."""
    items = b"".join(
        _opcodes(name) + _opcodes(_tensor(str(key), class_, tuple(value.shape)))
        for key, ((name, value), class_) in enumerate(zip(state_dict.items(), classes, strict=True))
    )
    return (
        pickle.PROTO
        + b"\x02"
        + _opcodes(_EMPTY)
        + pickle.MARK
        + items
        + pickle.SETITEMS
        + pickle.STOP
    )


def _tensor(key: str, class_: str, shape: tuple[int, ...]) -> Placeholder:
    storage = _Storage(("storage", Placeholder("torch", class_), key, "cpu", math.prod(shape)))
    strides = contiguous_strides(shape)
    args = (storage, 0, shape, strides, False, _EMPTY)
    return Placeholder("torch._utils", "_rebuild_tensor_v2", args)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A reference to bytes outside the pickle."""

    reference: tuple[Any, ...]


_EMPTY = Placeholder("collections", "OrderedDict", ())


def _opcodes(value: Any) -> bytes:
    """The opcodes of a value; `pickle` can only name what it can import."""
    match value:
        case Placeholder(module=module, name=name, args=None):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Placeholder(module=module, name=name, args=args):
            return _opcodes(Placeholder(module, name)) + _opcodes(args) + pickle.REDUCE
        case _Storage(reference):
            return _opcodes(reference) + pickle.BINPERSID
        case tuple():
            return pickle.MARK + b"".join(map(_opcodes, value)) + pickle.TUPLE
    output = io.BytesIO()
    pickler = pickle.Pickler(output, protocol=2)
    pickler.fast = True  # without a memo, which belongs to the whole pickle
    pickler.dump(value)
    return output.getvalue()[len(pickle.PROTO) + 1 : -len(pickle.STOP)]
