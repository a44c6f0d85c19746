"""What several verbs do with their arguments."""

import argparse
import os
from pathlib import Path
from typing import Any

from replk_jax import released
from replk_jax.files import replace_json
from replk_jax.preprocessing import Preprocessing


def add_reading(verb: argparse.ArgumentParser) -> None:
    """What to take from a file of weights, and what to add that its name does not tell."""
    verb.add_argument(
        "--like",
        type=_preprocessing,
        dest="preprocessing",
        metavar="NAME",
        help="prepare images as for the released checkpoint of this file name",
    )
    verb.add_argument("--ema", action="store_true", help="the moving average of the weights")


def add_force(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--force", action="store_true", help="replace what is there")


def _preprocessing(name: str) -> Preprocessing:
    found = released.find(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"no released checkpoint is called {name}")
    return found.preprocessing


def check_file(path: Path | None) -> None:
    """Raises before anything is measured in vain.

    Raises:
      ValueError: there is no folder to write the file to, or a folder has its name.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to write {path} to. Make it first.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The folder {path.parent} is not writable; name another one.")


def check_output(path: Path, force: bool, *, checkpoint: bool = False) -> None:
    """Raises before anything is computed in vain.

    Args:
      path: to write.
      force: replace what is there.
      checkpoint: what is written may be the folder of a checkpoint, and replace one.

    Raises:
      ValueError: as `check_file`, but for the folder of a checkpoint.
      FileExistsError: there is something, and `force` is not set.
    """
    if not checkpoint or not path.is_dir():
        check_file(path)
    elif not (path / "description").is_dir():
        raise ValueError(f"{path} is a folder, and not a checkpoint's: no --force replaces it.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already; --force replaces it.")


def write_json(report: dict[str, Any], path: Path | None) -> None:
    """What was there stays until the new report is whole."""
    if path:
        replace_json(path, report)
