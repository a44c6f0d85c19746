"""Makes text from files and errors safe for a terminal."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from replk_jax.io.errors import error_text
from replk_jax.io.text import brief, escaped


def printable(value: Any, most: int = 1000) -> str:
    """A value on one line of at most `most` characters.

    Strings are printed as they are, other values as a short `repr`. Control characters, marks of
    the writing direction and lone surrogates are escaped.
    """
    text = value if isinstance(value, str) else brief(value)
    shown = escaped(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def shortened(lines: Iterable[str], most: int = 50) -> Iterator[str]:
    """The first `most` lines, and the number of the others."""
    lines = iter(lines)
    yield from itertools.islice(lines, most)
    if more := sum(1 for _ in lines):
        yield f"... and {more:,} more"


def message(error: Exception | str) -> str:
    """The printable text of an error or a warning, which may quote any file."""
    text = error if isinstance(error, str) else error_text(error)
    return "\n".join(shortened(map(printable, text.splitlines())))
