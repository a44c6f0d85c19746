"""Suggests a checkpoint for a path that is near one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from replk_jax.io.errors import FileError


@contextlib.contextmanager
def pointing_to_checkpoint(path: Path) -> Iterator[None]:
    """Adds to a ValueError which checkpoint is near `path`.

    Raises:
      FileError: replaces the ValueError if there is such a checkpoint.
    """
    try:
        yield
    except ValueError as error:
        if hint := _hint(path):
            raise FileError(f"{error}{hint}") from error
        raise


def _hint(path: Path) -> str:
    """A hint for a path inside, above or beside checkpoints; empty if there are none."""
    above = path.absolute().parents[:2]
    if part_of := next((folder for folder in above if (folder / "description").is_dir()), None):
        return f" Name the checkpoint itself, {part_of}."
    if path.is_dir():
        found = [*path.glob("checkpoints/*/description"), *path.glob("*/description")]
    else:
        found = [*path.parent.glob("checkpoints/*/description")]
    if found:
        latest = max(found, key=os.path.getmtime).parent
        return f" Name one of its checkpoints, {latest}."
    return ""
