"""Checksums of the files in a folder, by which damage is found before anything is read.

Orbax has checksums for its metadata, not for the arrays: where a byte of those is altered, it
reads another weight and raises no error.
"""

import json
import zlib
from pathlib import Path

from replk_jax.io.files import on_disk, replace_json

_RECORD = "checksums.json"
_CHUNK = 2**24


def record(folder: Path) -> None:
    """Writes the size and CRC-32 of every file below a folder to its `checksums.json`.

    All files and folders are on the disk when this returns, so that a power cut leaves what was
    recorded. Files that have just been written are read from the cache, at some 5 GB/s.

    Raises:
      OSError: a file cannot be read, or the record cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in (*files, *(path for path in folder.rglob("*") if path.is_dir())):
        on_disk(path)
    replace_json(
        folder / _RECORD,
        {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)] for path in files},
    )
    on_disk(folder)


def has_record(folder: Path) -> bool:
    """Whether `record` has been called for a folder."""
    return (folder / _RECORD).is_file()


def fault(folder: Path) -> str | None:
    """What is wrong with a folder, or None if all its files are as they were recorded."""
    try:
        recorded = json.loads((folder / _RECORD).read_bytes())
        for name, (size, crc) in recorded.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if _crc(path) != crc:
                return f"{name} is altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return str(error)
    except (ValueError, TypeError, AttributeError):
        return f"{_RECORD} is altered"
    return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
