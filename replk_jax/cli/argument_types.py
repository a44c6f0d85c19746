"""Argument types for argparse."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


def user_path(text: str) -> Path:
    """A path, with ~ for the home folder; a `type` for argparse.

    Raises:
      argparse.ArgumentTypeError: an empty path, or ~NAME of a user who does not exist.
    """
    if not text:
        raise argparse.ArgumentTypeError("must name a file or a folder; it is empty")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def positive(text: str) -> int:
    """A whole number of at least 1; a `type` for argparse."""
    value = _number(int, text, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0; a `type` for argparse."""
    value = _number(float, text, "a number")
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0 and finite, got {value:g}")
    return value


def _number(kind: Callable[[str], Number], text: str, wanted: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None
