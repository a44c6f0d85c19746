"""Ends command-line programs with flushed output or a suitable exit status."""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

from replk_jax.io.errors import error_text

# A shell's exit status for a program that the signal ended.
INTERRUPTED = 128 + signal.SIGINT
_READER_GONE = 141  # SIGPIPE


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Exits without a traceback if output fails or the user interrupts.

    The exit status is 141 if the reader of the output has closed it, as in `| head`; 1, with a
    message, if the output cannot be written, as on a full disk; 130 after Ctrl-C. Other exceptions
    propagate.
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
    """The stream, line-buffered if it is unbuffered (PYTHONUNBUFFERED).

    Text that cannot be written stays in the buffer, where `_output_error` finds it.
    """
    if stream is None or not isinstance(getattr(stream, "buffer", None), io.RawIOBase):
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
    """Whether `clean_exit` handles an exception: standard output cannot be written."""
    return isinstance(error, OSError) and (
        isinstance(error, BrokenPipeError) or _output_error() is not None
    )


def _output_error() -> OSError | None:
    """The error of writing standard output or error: flushing unwritten text fails again."""
    for stream in _open_streams():
        try:
            stream.flush()
        except OSError as error:
            return error
    return None


def _reader_gone() -> bool:
    """Whether standard output or error is a pipe without a reader."""
    poll = select.poll()
    for stream in _open_streams():
        poll.register(stream.fileno(), 0)  # POLLERR is always reported
    return bool(poll.poll(0))


def _discard_output() -> None:
    """Discards unwritten text, which the interpreter would flush again at exit."""
    for stream in _open_streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> list[TextIO]:
    """Standard output and error; a program may be started without one of them."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
