"""Writing so that a kill at any moment leaves the old file or the new one."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, all of it or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
