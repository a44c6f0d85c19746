"""What a run says when it cannot continue, and how its program ends then."""

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
    """A reason to stop that the user can fix; the message names the cause and the remedy."""


def expect_utf8(folder: str | os.PathLike) -> None:
    """Raises RunError for a path that the libraries for checkpoints and records cannot take."""
    path = os.fspath(folder)
    if encodable(path) != path:
        raise RunError(
            f"The path {path} is not UTF-8. The libraries that read and write checkpoints and "
            "records need that: rename the folder, or use another one."
        )


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Ends the program with a line and exit status 1 on an error that the user can fix."""
    try:
        yield
    except (RunError, OSError) as error:
        if is_output_error(error):
            raise  # see `clean_exit`
        stop(error_text(error))


def stop(message: str) -> NoReturn:
    """Ends the program with a message for the user, its characters escaped, and exit status 1."""
    message = escaped_lines(message)
    if jax.distributed.is_initialized():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # an orderly exit would wait minutes for the other processes
    sys.exit(f"error: {message}")
