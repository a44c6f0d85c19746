"""A lock on the folder of a run, so that only one run at a time uses it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from train.engine import parallel
from train.errors import RunError, expect_utf8

_LOCK = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def locked(workdir: Path, report: Callable[[str], None] = print) -> Iterator[None]:
    """A context manager that locks the folder of a run.

    The main process locks the file `lock` in the folder, for all processes of the run. The kernel
    releases the lock when that process ends, even if it is killed. The file stays; without a lock
    on it, it has no effect.

    Args:
      workdir: the folder; it is created if necessary.
      report: called with a message if the file system does not support locks. The run then
        continues without one.

    Raises:
      RunError: another run has the lock (the message names its host, process and start time), or
        the path is not UTF-8.
      OSError: the folder or the file cannot be created.
    """
    own = parallel.on_all_processes(
        lambda: lock(workdir, report) if parallel.is_main_process() else contextlib.nullcontext()
    )
    with own:
        yield


def lock(folder: Path, report: Callable[[str], None]) -> TextIO:
    """Locks any folder for this process, as `locked` does for a run.

    Returns:
      The open file; closing it releases the lock.

    Raises:
      RunError: another program has the lock, or the path is not UTF-8.
      OSError: the folder or the file cannot be created.
    """
    expect_utf8(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            raise RunError(
                f"{folder} is in use by another program: {_holder(file)}. Wait until it ends, stop "
                "it, or use another folder."
            ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        report(
            f"{folder} cannot be locked ({error.strerror}): make sure that no other run uses it."
        )
    file.truncate(0)
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T")}
    file.write(json.dumps(holder) + "\n")
    file.flush()
    return file


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the other program has not written its entry yet
        return "it has just started"
