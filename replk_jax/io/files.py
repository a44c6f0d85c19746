"""Files that are either complete or not there."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` at the end, or is removed if something fails.

    Until then its name is `path` with ".partial" appended; a file of that name, which a killed
    program has left, is overwritten.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file, all of it or nothing; as `json_text` and `replace_text`."""
    replace_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON (RFC 8259), where NaN and infinite numbers become null."""
    return json.dumps(_with_nulls(value), indent=indent, allow_nan=False)


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, all of it or nothing.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def on_disk(path: str | os.PathLike) -> None:
    """Waits until a file, or the list of the files in a folder, is on the disk.

    Raises:
      OSError: it cannot be.
    """
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _with_nulls(value: Any) -> Any:
    """The same value with None for each number that is not finite, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(entry) for entry in value]
    return value
