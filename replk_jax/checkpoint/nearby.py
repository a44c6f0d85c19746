"""Which checkpoint a path may mean that is none itself."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from replk_jax.io.errors import FileError


@contextlib.contextmanager
def pointing_to_checkpoint(path: Path) -> Iterator[None]:
    """Adds to a ValueError which checkpoint may be meant, if `path` is of a run or inside of one.

    Raises:
      FileError: in place of the ValueError, with its message, where there is such a checkpoint.
    """
    try:
        yield
    except ValueError as error:
        if hint := _hint(path):
            raise FileError(f"{error}{hint}") from error
        raise


def _hint(path: Path) -> str:
    """A hint for a path in or above a checkpoint, or of a file beside those of a run; else ""."""
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
