"""How command-line programs end: flushed, or with an exit status that says what stopped them."""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

from replk_jax.io.errors import error_text

# As a shell reports a program that the signal has ended.
INTERRUPTED = 128 + signal.SIGINT
_READER_GONE = 141  # SIGPIPE


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Ends the program without a traceback when its output or its user stops it.

    Exit status 141 where the reader of the output has gone, as in `| head`; 1, with a message,
    where the output cannot be written, as on a full disk; 130 after Ctrl-C. Other exceptions pass.
    """
    with contextlib.redirect_stdout(_buffered(sys.stdout)):
        try:
            with _flushed_output():
                yield
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except OSError as error:
            failure = _output_error()
            if isinstance(error, BrokenPipeError) and _reader_gone():
                status = _READER_GONE
            elif failure is not None:
                status = f"error: standard output cannot be written: {error_text(failure)}"
            else:
                raise
            _discard_output()
            sys.exit(status)


def _buffered(stream: TextIO | None) -> TextIO | None:
    """A stream with a buffer, flushed at each line, where this one has none (PYTHONUNBUFFERED).

    What cannot be written stays in the buffer, where `_output_error` finds it.
    """
    if not isinstance(getattr(stream, "buffer", None), io.RawIOBase):
        return stream
    return open(
        stream.fileno(),
        "w",
        buffering=1,
        encoding=stream.encoding,
        errors=stream.errors,
        closefd=False,
    )


@contextlib.contextmanager
def _flushed_output() -> Iterator[None]:
    """Flushes the output at the end, while an error can still be handled."""
    try:
        yield
    finally:
        for stream in _open_streams():
            stream.flush()


def is_output_error(error: Exception) -> bool:
    """Whether an exception is a matter for `clean_exit`: standard output cannot be written."""
    return isinstance(error, OSError) and (
        isinstance(error, BrokenPipeError) or _output_error() is not None
    )


def _output_error() -> OSError | None:
    """What keeps standard output or error from being written: unwritten text fails again."""
    for stream in _open_streams():
        try:
            stream.flush()
        except OSError as error:
            return error
    return None


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
