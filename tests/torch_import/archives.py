"""PyTorch files put together by hand, out of opcodes and bytes."""

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_archive(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file of the zip format, with valid checksums."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (others or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def add_entries(path: Path, **entries: Any) -> None:
    """Puts the state dict that `write_torch` wrote under a key, next to other entries."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in contents if name.endswith("/data.pkl"))
    # Each pickle without its protocol and its end.
    items = pickle.dumps("state_dict", 2)[2:-1] + contents[name][2:-1]
    for key, value in entries.items():
        items += pickle.dumps(key, 2)[2:-1] + pickle.dumps(value, 2)[2:-1]
    contents[name] = b"\x80\x02}(" + items + b"u."
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def write_with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def tensor(
    shape: Sequence[int] = (4,),
    strides: Sequence[int] = (1,),
    offset: int = 0,
    *,
    key: str = "0",
    storage: str = "FloatStorage",
    count: int = 4,
) -> bytes:
    """The opcodes, in protocol 0 as far as it goes, that rebuild a tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + f"(Vstorage\nctorch\n{storage}\nV{key}\nVcpu\nI{count}\ntQI{offset}\n".encode()
        + _tuple(shape)
        + _tuple(strides)
        + b"I00\n(dtR"
    )


def state_dict(**tensors: bytes) -> bytes:
    """The pickle of a dict of the values that these opcodes make."""
    return b"(d" + b"".join(f"V{name}\n".encode() + t + b"s" for name, t in tensors.items()) + b"."


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(b"I%d\n" % number for number in numbers) + b"t"
