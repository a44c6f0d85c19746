"""What several verbs do with their arguments."""

import argparse
import json
from pathlib import Path
from typing import Any


def check_folder(path: Path | None) -> None:
    """Before anything is measured in vain."""
    if path and not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to write {path} to.")


def write_json(report: dict[str, Any], path: Path | None) -> None:
    """What was there stays until the new report is whole."""
    if path:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n")
        partial.replace(path)


def seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {value:g}")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
