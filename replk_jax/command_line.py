"""What all command-line programs share: paths, the text of an error, and how they end."""

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

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


def error_text(error: BaseException) -> str:
    """What an error says, without Python's notation; never empty.

    An OSError about a file becomes "FILE: reason"; an error without a message, its type's name.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0]) or "KeyError"  # str(error) would put the message in quotes
    return str(error) or type(error).__name__


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
    """Flushes standard output at the end, while an error can still be handled."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_output()
            sys.exit(f"error: standard output: {error_text(error)}")


def _reader_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # a lost reader is reported unasked
    return bool(poll.poll(0))


def _discard_output() -> None:
    """What a stream cannot write goes nowhere: the interpreter flushes once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
