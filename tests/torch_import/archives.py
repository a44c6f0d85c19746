"""PyTorch files put together by hand, out of opcodes and bytes."""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_archive(
    path: Path,
    pickle: bytes,
    storages: Mapping[str, bytes] | None = None,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file of the zip format, with valid checksums."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (others or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


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
