"""Errors that the user can fix, and how they end a program."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax

from replk_jax.cli.clean_exit import is_output_error
from replk_jax.io.errors import error_text
from replk_jax.io.text import encodable, escaped_lines


class RunError(Exception):
    """An error that the user can fix; the message has the cause and the remedy."""


def expect_utf8(folder: str | os.PathLike) -> None:
    """Raises RunError for a path that is not UTF-8, which Orbax and array_record do not support."""
    path = os.fspath(folder)
    if encodable(path) != path:
        raise RunError(
            f"The path {path} is not UTF-8, as the libraries for checkpoints and records need it: "
            "rename the folder, or use another one."
        )


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """A context manager: an error that the user can fix ends the program; see `stop`."""
    try:
        yield
    except (RunError, OSError) as error:
        if is_output_error(error):
            raise  # see `clean_exit`
        stop(error_text(error))


def stop(message: str) -> NoReturn:
    """Ends the program with an error message, escaped where necessary, and exit status 1."""
    message = escaped_lines(message)
    if jax.distributed.is_initialized():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # a normal exit would wait minutes for the other processes
    sys.exit(f"error: {message}")
