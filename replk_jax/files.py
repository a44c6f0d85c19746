"""Files that are either complete or not there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` at the end, or goes away if something fails.

    Until then it is called `path` with ".partial" behind it; what a killed program left under
    that name is written over.

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
    """Writes a JSON file, all of it or nothing; as `replace_text`."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


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
