"""Arguments that several verbs share."""

import argparse
import os
from pathlib import Path
from typing import Any

from replk_jax import pretrained
from replk_jax.io.files import replace_json


def add_reading(verb: argparse.ArgumentParser) -> None:
    """Adds the options that select weights, and the preprocessing that the file lacks."""
    verb.add_argument(
        "--like",
        type=_published,
        metavar="NAME",
        help="prepare images as for this checkpoint: a tag of `models --pretrained`, the name of "
        "its file, or a model; for a segmenter or detector of PyTorch also its class names and the "
        "settings that no tensor records, if the file has none",
    )
    add_selection(verb)


def add_selection(verb: argparse.ArgumentParser) -> None:
    """Adds the options that select weights in a file."""
    verb.add_argument(
        "--ema",
        action="store_true",
        help="load the EMA (exponential moving average) of the weights",
    )
    verb.add_argument(
        "--key",
        metavar="KEY",
        help="of the entry with the weights in a PyTorch file; KEY/KEY for an entry inside it",
    )
    verb.add_argument(
        "--prefix", help="of the names of the weights in a PyTorch file, such as encoder."
    )


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_reading`, as keyword arguments of `load`."""
    return {"like": arguments.like, **selection(arguments)}


def selection(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_selection`, as keyword arguments of `load` and `Selection`."""
    return {"prefer_ema": arguments.ema, "key": arguments.key, "prefix": arguments.prefix}


def add_force(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--force", action="store_true", help="replace what is there")


def _published(name: str) -> str:
    """The tag of a published checkpoint."""
    try:
        return pretrained.lookup(name).tag
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_file(path: Path | None) -> None:
    """Checks that a file can be written, before the computation.

    Raises:
      ValueError: the folder does not exist or is not writable, or the path is a folder.
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
    """Checks that an output can be written, before the computation.

    Args:
      path: to write.
      force: replace what exists.
      checkpoint: whether the output may be the folder of a checkpoint, and replace one.

    Raises:
      ValueError: as `check_file`, except for the folder of a checkpoint.
      FileExistsError: the path exists, and `force` is not set.
    """
    if not checkpoint or not path.is_dir():
        check_file(path)
    elif not (path / "description").is_dir():
        raise ValueError(f"{path} is a folder but not a checkpoint: --force does not replace it.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already; --force replaces it.")


def write_json(report: dict[str, Any], path: Path | None) -> None:
    """Writes a report, atomically."""
    if path:
        replace_json(path, report)
