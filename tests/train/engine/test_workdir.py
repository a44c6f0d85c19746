"""The lock of a run's folder."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from train.engine.workdir import locked
from train.errors import RunError

HOLD = """
import sys, time
from pathlib import Path
from train.engine.workdir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_path_that_is_not_utf8(tmp_path):
    """Is refused at the start: the first checkpoint would fail."""
    workdir = tmp_path / "caf\udce9"
    with pytest.raises(RunError, match="is not UTF-8"), locked(workdir):
        pass
    assert not workdir.exists()
    with locked(tmp_path / "é\n大"):
        pass


def test_a_second_run_is_refused(tmp_path):
    workdir = tmp_path / "new" / "run"
    with locked(workdir):
        holder = rf"process {os.getpid()} on {re.escape(socket.gethostname())}, since 20"
        message = rf"{workdir} is in use by another program: {holder}"
        for _ in range(2):  # what is refused leaves no trace
            with pytest.raises(RunError, match=message), locked(workdir):
                pass
        with locked(tmp_path / "other"):
            pass
    with locked(workdir):
        pass


def test_the_lock_of_a_killed_run_is_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as run:
        assert run.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {run.pid} on"), locked(tmp_path):
            pass
        run.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / "lock").read_text())["process"] == run.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_run_that_has_only_just_begun(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="just started"), locked(tmp_path):
            pass


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number, goes_on):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    said = []
    if goes_on:
        with locked(tmp_path, said.append):
            assert f"{tmp_path} cannot be locked" in said[0]
    else:
        with pytest.raises(OSError, match=os.strerror(number)), locked(tmp_path, said.append):
            pass
        assert not said
