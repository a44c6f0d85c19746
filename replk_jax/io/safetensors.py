"""The format of Hugging Face's safetensors library.

A file has the size of its header in 8 bytes, little-endian; the header, a JSON object; and the
tensors, one after the other without gaps. For each tensor the header has

    NAME: {"dtype": CODE, "shape": [...], "data_offsets": [BEGIN, END]}

with offsets that count from the header's end, and under "__metadata__" it may have strings by
strings.
"""

import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.files import replacing
from replk_jax.io.json_object import parse_json_object
from replk_jax.io.tensors import (
    DTYPES,
    Storage,
    StoredTensor,
    TensorLike,
    dtype_code,
    element_bytes,
)
from replk_jax.io.text import brief

_METADATA = "__metadata__"
_SIZE_BYTES = 8

_MOST_HEADER_BYTES = 1 << 22  # that of thirty thousand tensors
# What a header calls a dtype, by its name.
_CODES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_DTYPES = {code: DTYPES[name] for name, code in _CODES.items()}


def is_safetensors(file: ByteFile) -> bool:
    """Whether a file begins as one of this format does."""
    start = bytes(file.read(0, min(file.size, _SIZE_BYTES + 1)))
    return start[_SIZE_BYTES:] == b"{" and int.from_bytes(start[:_SIZE_BYTES], "little") < 1 << 40


class SafetensorsFile:
    """A .safetensors file, whose header is parsed once.

    Raises:
      ValueError: a header that is too long or no JSON object.
    """

    def __init__(self, file: ByteFile):
        self._file = file
        self._header, self._data = _read_header(file)

    @functools.cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by name, in the order of the header.

        Raises:
          ValueError: a header that does not fit the file.
        """
        tensors, places = {}, []
        for name, entry in self._header.items():
            if name != _METADATA:
                place, tensors[name] = _tensor(self._file, self._data, name, entry)
                places.append(place)
        ends = [0, *(end for _, end in sorted(places))]
        begins = [begin for begin, _ in sorted(places)]
        if begins != ends[:-1] or self._data + ends[-1] != self._file.size:
            raise ValueError(
                "its tensors are not one after the other up to its end, as if it had been cut "
                "short. Copy or download it again."
            )
        return tensors

    @property
    def metadata(self) -> dict[str, str]:
        """The strings beside the tensors.

        Raises:
          ValueError: metadata that are not strings by strings.
        """
        metadata = self._header.get(_METADATA, {})
        texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
        if not texts:
            raise ValueError(f"its metadata are not strings by strings: {brief(metadata)}.")
        return metadata


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, TensorLike], metadata: Mapping[str, str]
) -> None:
    """Writes a .safetensors file, all of it or nothing.

    Tensors of larger elements come first, so that all are aligned; else their order is kept.

    Args:
      path: of the file, in a folder that is there.
      tensors: by name; each is made an array in turn, and dropped again.
      metadata: strings by strings, to be stored beside the tensors.

    Raises:
      ValueError: a dtype that the format does not have, or metadata that are not strings.
      OSError: the file cannot be written.
    """
    if not all(isinstance(text, str) for text in (*metadata, *metadata.values())):
        raise ValueError(f"The metadata of {os.fspath(path)} must be strings by strings.")
    if _METADATA in tensors:
        raise ValueError(f"A tensor cannot be named {_METADATA!r} in a .safetensors file.")
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    ordered = sorted(tensors.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": dtype_code(_CODES, name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE_BYTES)
    with replacing(path) as file:
        file.write(len(text).to_bytes(_SIZE_BYTES, "little") + text)
        for name, tensor in ordered:
            file.write(element_bytes(name, tensor))


def _read_header(file: ByteFile) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    size = int.from_bytes(file.read(0, _SIZE_BYTES), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError(f"its header has {size} bytes, more than that of any checkpoint.")
    try:
        header = parse_json_object(bytes(file.read(_SIZE_BYTES, size)))
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error}). Copy or download it again.") from error
    return header, _SIZE_BYTES + size


def _tensor(
    file: ByteFile, data: int, name: str, entry: Any
) -> tuple[tuple[int, int], StoredTensor]:
    """A tensor and where it begins and ends, counted from `data` on."""
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if code not in _DTYPES:
                raise ValueError(f"it has {brief(name)} in {brief(code)}, which is not known here.")
            storage = Storage(file, brief(name), end - begin, data + begin)
            tensor = StoredTensor(storage, _DTYPES[code], 0, tuple(shape))
            if tensor.nbytes == end - begin:
                return (begin, end), tensor
    raise ValueError(f"its header says of {brief(name)} what cannot be: {brief(entry)}.")
