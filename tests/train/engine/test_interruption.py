"""Runs that are asked to stop, alone and in twos."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.runs import free_port
from train.engine.interruption import EXIT_STATUS, Interruption

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as interruption:
        assert not interruption.requested(1)
        signal.raise_signal(number)
        assert interruption.requested(2)
        signal.raise_signal(signal.SIGTERM)  # a cluster may say it several times
        assert interruption.requested(3)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_second_sigint_stops_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_exit_status_means_try_again():
    assert EXIT_STATUS == os.EX_TEMPFAIL


WORK = """
import os, time
from train.engine.interruption import obey_main_process

def work():
    obey_main_process(0, 1)
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
"""
START = """
import multiprocessing
from work import work
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


def test_a_worker_ends_with_the_main_process_and_not_before(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "start.py").write_text(START)
    with subprocess.Popen(
        [sys.executable, tmp_path / "start.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as main:
        worker = int(main.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
        time.sleep(0.2)
        os.kill(worker, 0)  # it is there
        main.kill()
        began = time.monotonic()
        assert main.stdout.read() == ""  # returns when the worker, too, has let go of the pipe
    assert time.monotonic() - began < 30  # it would sleep for 60


@pytest.mark.slow
def test_two_processes_do_it_all_together(tmp_path):
    """Save, restore, fail, refuse, decide, and leave at the same step when one of them is asked,
    here by SIGINT, which it makes a SIGTERM of."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.pair", str(i), str(port), tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        )
        for i in range(2)
    ]
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    main, other = (json.loads(out.splitlines()[-1]) for out, _ in texts)
    checkpoints = tmp_path / "checkpoints"
    assert main["restored"] == other["restored"] == 4
    assert main["after damage"] == other["after damage"] == 3
    assert f"{checkpoints / '4'} is damaged" in main["report"]
    assert "report" not in other
    assert f"could not be written to {checkpoints}" in main["full disk"]
    assert "in use by another program" in main["second run"]
    decided = {"process": 0, "text": "naïve " * 1000, "nothing": None}
    assert main["by main process"] == other["by main process"] == decided
    assert main["failed work"] == "no result"
    for trouble in ("full disk", "second run", "failed work"):
        assert "Process 0 failed" in other[trouble]
    assert {path.name for path in checkpoints.iterdir()} == {"3", "4.damaged", "5"}
    assert main["left at"] == other["left at"] > 10
