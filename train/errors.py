"""What a run says when it cannot continue, and how its program ends then."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax

from replk_jax.errors import error_text
from replk_jax.text import escaped_lines


class RunError(Exception):
    """A reason to stop that is the user's to mend; the message names the cause and the remedy."""


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Ends the program with a line and exit status 1 on an error that the user can fix."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has gone, which is no error: see `quiet_end`
    except (RunError, OSError) as error:
        stop(error_text(error))


def stop(message: str) -> NoReturn:
    """Ends the program with a message for the user, its characters escaped, and exit status 1."""
    message = escaped_lines(message)
    if jax.distributed.is_initialized():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # an orderly exit would wait minutes for the other processes
    sys.exit(f"error: {message}")
