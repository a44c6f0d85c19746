"""What several verbs do with their arguments."""

import argparse
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
        help="prepare images as for the released checkpoint of this file name, or of this model",
    )
    verb.add_argument("--ema", action="store_true", help="the moving average of the weights")


def add_force(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--force", action="store_true", help="replace what is there")


def _preprocessing(name: str) -> Preprocessing:
    try:
        return released.lookup(name).preprocessing
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_folder(path: Path | None) -> None:
    """Before anything is measured in vain."""
    if path and not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to write {path} to.")


def check_output(path: Path, force: bool) -> None:
    """Before anything is computed in vain.

    Raises:
      ValueError: there is no folder to write it to, or it is the folder of something else than
        a checkpoint.
      FileExistsError: there is something, which is not to be replaced.
    """
    check_folder(path)
    if path.is_dir() and not (path / "description").is_dir():
        raise ValueError(f"{path} is a folder, and not a checkpoint's: no --force replaces it.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already; --force replaces it.")


def write_json(report: dict[str, Any], path: Path | None) -> None:
    """What was there stays until the new report is whole."""
    if path:
        replace_json(path, report)


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
