"""Errors that name a file, and the text of errors."""

import contextlib
import os
from collections.abc import Iterator


def error_text(error: BaseException) -> str:
    """What an error says, without Python's notation; never empty.

    An OSError becomes "FILE: reason", or the reason alone; an error without a message, the name of
    its type.
    """
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename
        return error.strerror if file is None else f"{file}: {error.strerror}"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0]) or "KeyError"  # str(error) would put the message in quotes
    text = str(error)
    return text if text.strip() else type(error).__name__


class FileError(ValueError):
    """A file that cannot be read; the message is "FILE: reason. remedy"."""


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to a ValueError that is not a `FileError` yet, and makes it one."""
    try:
        yield
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error
