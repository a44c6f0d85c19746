"""One of two processes of a run, which save, restore, fail, refuse, decide and are interrupted
together.

python -m tests.train.pair PROCESS PORT FOLDER prints what it has met, as JSON.
"""

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.train.engine.test_checkpoints import flip, full_disk, state
from train.engine import parallel
from train.engine.checkpoints import Checkpoints
from train.engine.interruption import Interruption
from train.engine.workdir import locked
from train.errors import RunError

met = {}


def save_and_restore(folder: Path) -> None:
    """The kernel is split, half of it with either process."""
    saved, like = (state(value, devices=2, average=True) for value in (3.0, 0.0))
    assert not saved.params["kernel"].is_fully_addressable
    with Checkpoints(folder, 2, {}, report=lambda text: met.update(report=text)) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, saved)
            checkpoints.score(step, 0.5)
        checkpoints.wait()
        met["restored"] = checkpoints.restore_latest(like)[1]
        if parallel.is_main_process():
            flip(folder / "4" / "params" / "_METADATA")
        restored, met["after damage"] = checkpoints.restore_latest(like)
        for actual, expected in zip(
            jax.tree.leaves(restored.replace(step=saved.step)), jax.tree.leaves(saved), strict=True
        ):
            assert actual.sharding == expected.sharding
            for mine, theirs in zip(
                actual.addressable_shards, expected.addressable_shards, strict=True
            ):
                np.testing.assert_array_equal(mine.data, theirs.data)
        with full_disk() if parallel.is_main_process() else contextlib.nullcontext():
            checkpoints.save(5, saved)
            met["full disk"] = refusal(checkpoints.wait)
        checkpoints.save(5, saved)


def hold(folder: Path) -> None:
    with locked(folder):
        time.sleep(0.1)


def hold_twice(folder: Path) -> None:
    with locked(folder):
        met["second run"] = refusal(lambda: hold(folder))


def decide() -> None:
    """The main process alone works, here the number of the process, and all learn the result."""

    def work() -> dict:
        return {"process": jax.process_index(), "text": "naïve " * 1000, "nothing": None}

    met["by main process"] = parallel.by_main_process(work)

    def fail() -> None:
        raise RunError("no result")

    met["failed work"] = refusal(lambda: parallel.by_main_process(fail))


def train(process: int) -> int:
    """The step at which this process leaves, if process 1 gets a SIGINT at its tenth."""
    with Interruption() as interruption:
        for step in range(1, 2000):
            time.sleep(0.005 if process else 0.01)
            if (process, step) == (1, 10):
                signal.raise_signal(signal.SIGINT)
            if interruption.requested(step):
                return step
    return 0


def refusal(work) -> str:
    try:
        work()
    except RunError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    parallel.start_processes(
        {"coordinator": f"127.0.0.1:{port}", "num_processes": 2, "process_id": process}
    )
    save_and_restore(folder / "checkpoints")
    hold_twice(folder)
    decide()
    met["left at"] = train(process)
    print(json.dumps(met), flush=True)
