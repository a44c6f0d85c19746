"""What all command-line programs share: the types of arguments, and how they end."""

import argparse
import contextlib
import math
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

from replk_jax.errors import error_text

Number = TypeVar("Number", int, float)

# As a shell reports a program that the signal has ended.
INTERRUPTED = 128 + signal.SIGINT
_READER_GONE = 141  # SIGPIPE


def user_path(text: str) -> Path:
    """A path as a user writes it, with ~ for the home folder; a `type` for argparse.

    Raises:
      argparse.ArgumentTypeError: an empty path, or ~NAME of a user who does not exist.
    """
    if not text:
        raise argparse.ArgumentTypeError("must name a file or a folder; it is empty")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def seconds(text: str) -> float:
    """A positive number of seconds; a `type` for argparse."""
    value = _number(float, text, "a number")
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0 and finite, got {value:g}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1; a `type` for argparse."""
    value = _number(int, text, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _number(kind: Callable[[str], Number], text: str, wanted: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Ends the program without a traceback when its reader or its user stops it.

    Exit status 141 where the reader of the output has gone, as in `| head`; 130 after Ctrl-C; 1,
    with a message, where the last of the output cannot be written, as on a full disk. Other
    exceptions pass.
    """
    try:
        with _flushed_output():
            try:
                yield
            except KeyboardInterrupt:
                print("Interrupted.", file=sys.stderr)
                sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _reader_gone():
            raise
        _discard_output()
        sys.exit(_READER_GONE)


@contextlib.contextmanager
def _flushed_output() -> Iterator[None]:
    """Flushes the output at the end, while an error can still be handled."""
    try:
        yield
    finally:
        try:
            for stream in _open_streams():
                stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_output()
            sys.exit(f"error: the output cannot be written: {error_text(error)}")


def _reader_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more."""
    poll = select.poll()
    for stream in _open_streams():
        poll.register(stream.fileno(), 0)  # a lost reader is reported unasked
    return bool(poll.poll(0))


def _discard_output() -> None:
    """What a stream cannot write goes nowhere: the interpreter flushes once more at its end."""
    for stream in _open_streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> list[TextIO]:
    """Standard output and error; a program may be started without one of them."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
