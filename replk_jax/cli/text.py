"""Text that files hold and errors quote, as a terminal can show it."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from replk_jax.io.errors import error_text
from replk_jax.io.text import brief, escaped


def printable(value: Any, most: int = 1000) -> str:
    """A value on one line of at most so many characters.

    Strings stand as they are, all else as `repr` has it, in brief. For what a terminal would obey
    or cannot show there are escapes: control characters, marks that turn the direction of
    writing, lone surrogates.
    """
    text = value if isinstance(value, str) else brief(value)
    shown = escaped(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def shortened(lines: Iterable[str], most: int = 50) -> Iterator[str]:
    """The first lines, and how many more there are."""
    lines = iter(lines)
    yield from itertools.islice(lines, most)
    if more := sum(1 for _ in lines):
        yield f"... and {more:,} more"


def message(error: Exception | str) -> str:
    """What an error or a warning says, which may quote any file and be of many lines."""
    text = error if isinstance(error, str) else error_text(error)
    return "\n".join(shortened(map(printable, text.splitlines())))
