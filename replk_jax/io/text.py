"""Names of files, and other text from outside, in a form that can be printed and stored."""

import io
import reprlib
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

# Categories of Unicode that a line of UTF-8 text cannot hold: control characters, lone surrogates
# (with which Python writes the bytes of a file name that are not UTF-8), separators of lines and
# paragraphs.
_NOT_STORABLE = {"Cc", "Cs", "Zl", "Zp"}


def escaped(text: str) -> str:
    """Text on one line, with an escape such as `\\n` or `\\udce9` for what a terminal cannot show.

    That is whatever `str.isprintable` excludes: control characters, marks that reverse the
    direction of writing, unusual spaces, lone surrogates. A backslash stays, so text that is
    escaped already does not change.
    """
    return _with_escapes(text, lambda char: not char.isprintable())


def escaped_lines(text: str) -> str:
    """As `escaped`, but keeps the line breaks `\\n` of a message of several lines."""
    return "\n".join(map(escaped, text.split("\n")))


def storable(text: str) -> str:
    """Text that encodes as UTF-8 and takes one line of a text file.

    Control characters, line separators and lone surrogates are escaped; all else stays.
    """
    return _with_escapes(text, lambda char: unicodedata.category(char) in _NOT_STORABLE)


def encodable(text: str) -> str:
    """Text that encodes as UTF-8: lone surrogates are escaped; all else stays."""
    return text.encode("utf-8", "backslashreplace").decode()


def escape_unencodable_output() -> None:
    """Makes standard output and error write an escape for a character that they cannot encode.

    Programs call it first. Otherwise a file name that is not UTF-8, or an accent where the locale
    is ASCII, would end them with a UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a notebook or a test puts there
            stream.reconfigure(errors="backslashreplace")


def _with_escapes(text: str, needs_escape: Callable[[str], bool]) -> str:
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if needs_escape(char) else char for char in text
    )


@runtime_checkable
class HasParts(Protocol):
    """An object that `brief` shows by its parts."""

    def brief_parts(self) -> tuple[str, Sequence[Any] | None]:
        """A name, and what follows it in parentheses; None for a name without parentheses."""
        ...


class _BriefRepr(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxlong = self.maxother = 80

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring]) + ("..." if len(value) > self.maxstring else "")

    def repr_instance(self, x: Any, level: int) -> str:
        if not isinstance(x, HasParts):
            return super().repr_instance(x, level)
        name, parts = x.brief_parts()
        if parts is None:
            return name
        if level <= 0 and parts:
            return f"{name}(...)"
        shown = [self.repr1(part, level - 1) for part in parts[: self.maxtuple]]
        return f"{name}({', '.join(shown + ['...'] * (len(parts) > self.maxtuple))})"


def brief(value: Any) -> str:
    """`repr` of a value from a file, cut short: three levels, eight parts of each."""
    return _BRIEF.repr(value)


_BRIEF = _BriefRepr()
