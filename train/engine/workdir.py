"""One run at a time in a folder."""

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
    """Holds the folder of a run until the end of the block, and refuses it to any other run.

    The main process locks the file `lock` in it for all processes of the run. The kernel takes the
    lock away when that process ends, however it ends; the file stays, and means nothing by itself.

    Args:
      workdir: the folder; made if there is none.
      report: is told where the file system has no locks, and the run goes on without.

    Raises:
      RunError: another run holds it, with its host, process and start; or its path is not UTF-8.
      OSError: the folder or the file cannot be made.
    """
    own = parallel.on_all_processes(
        lambda: lock(workdir, report) if parallel.is_main_process() else contextlib.nullcontext()
    )
    with own:
        yield


def lock(folder: Path, report: Callable[[str], None]) -> TextIO:
    """As `locked`, of this process alone and any folder.

    Returns:
      The open file, which is locked until it is closed.

    Raises:
      RunError: another program holds it, or its path is not UTF-8.
      OSError: the folder or the file cannot be made.
    """
    expect_utf8(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            raise RunError(
                f"Another program works in {folder}: {_holder(file)}. Wait for its end or stop it, "
                "or use another folder."
            ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        report(f"{folder} cannot be locked ({error.strerror}): see that no other run uses it.")
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
    except (ValueError, KeyError, TypeError):  # it is just about to write this
        return "it has only just begun"
