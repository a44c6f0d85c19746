"""The format of Hugging Face's safetensors library.

A file has the size of its header in 8 bytes, little-endian; the header, a table in JSON; and
the tensors, one after the other without gaps. For each tensor the header has

    NAME: {"dtype": CODE, "shape": [...], "data_offsets": [BEGIN, END]}

with offsets that count from the header's end, and under "__metadata__" it may have strings by
strings.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.files import replacing
from replk_jax.io.tensors import ELEMENT_TYPES, Storage, StoredTensor, dtype_name, element_bytes
from replk_jax.io.text import brief

_METADATA = "__metadata__"
_SIZE_BYTES = 8

_MOST_HEADER_BYTES = 1 << 22  # that of thirty thousand tensors
_CODES = {type_.dtype.name: type_.safetensors for type_ in ELEMENT_TYPES}
_DTYPES = {type_.safetensors: type_.dtype for type_ in ELEMENT_TYPES if type_.safetensors}


def is_safetensors(file: ByteFile) -> bool:
    start = bytes(file.read(0, min(file.size, _SIZE_BYTES + 1)))
    return start[_SIZE_BYTES:] == b"{" and int.from_bytes(start[:_SIZE_BYTES], "little") < 1 << 40


def read_safetensors(file: ByteFile) -> dict[str, StoredTensor]:
    """The tensors by name, in the order of the header.

    Raises:
      ValueError: a header that is no JSON, or does not fit the file.
    """
    header, data = _read_header(file)
    tensors, places = {}, []
    for name, entry in header.items():
        if name != _METADATA:
            place, tensors[name] = _tensor(file, data, name, entry)
            places.append(place)
    ends = [0, *(end for _, end in sorted(places))]
    if [begin for begin, _ in sorted(places)] != ends[:-1] or data + ends[-1] != file.size:
        raise ValueError(
            "its tensors are not one after the other up to its end, as if it had been cut short. "
            "Copy or download it again."
        )
    return tensors


def read_metadata(file: ByteFile) -> dict[str, str]:
    """The strings beside the tensors.

    Raises:
      ValueError: a header that is no JSON, or metadata that are not strings.
    """
    metadata = _read_header(file)[0].get(_METADATA, {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise ValueError(f"its metadata are not strings by strings: {brief(metadata)}.")
    return metadata


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a .safetensors file, all of it or nothing.

    Tensors of larger elements come first, so that all are aligned; else their order is kept.

    Args:
      path: of the file, in a folder that is there.
      arrays: names to arrays, or to what has `shape`, `dtype` and `__array__`, such as a
        `StoredTensor` or a JAX array; each is made an array in turn, and dropped again.
      metadata: strings by strings, to be stored beside the tensors.

    Raises:
      ValueError: a dtype that the format does not have, or metadata that are not strings.
      OSError: the file cannot be written.
    """
    if not all(isinstance(text, str) for text in (*metadata, *metadata.values())):
        raise ValueError(f"The metadata of {os.fspath(path)} must be strings by strings.")
    if _METADATA in arrays:
        raise ValueError(f"A tensor cannot be named {_METADATA!r} in a .safetensors file.")
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    ordered = sorted(arrays.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    end = 0
    for name, value in ordered:
        begin, end = end, end + math.prod(value.shape) * np.dtype(value.dtype).itemsize
        header[name] = {
            "dtype": dtype_name(_CODES, name, value),
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE_BYTES)
    with replacing(path) as file:
        file.write(len(text).to_bytes(_SIZE_BYTES, "little") + text)
        for name, value in ordered:
            file.write(element_bytes(name, value))


def _read_header(file: ByteFile) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    size = int.from_bytes(file.read(0, _SIZE_BYTES), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError(f"its header has {size} bytes, more than that of any checkpoint.")
    try:
        header = parse_table(bytes(file.read(_SIZE_BYTES, size)))
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error}). Copy or download it again.") from error
    return header, _SIZE_BYTES + size


def parse_table(data: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: no JSON, not an object, or an object that has a name twice.
    """
    try:
        table = json.loads(data.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(table, dict):
        raise ValueError("it is not a JSON object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


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
