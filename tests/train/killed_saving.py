"""Forks programs that save checkpoints one after another, and kills each at a random moment.

python -m tests.train.killed_saving FOLDER COUNT prints for each {"steps": [...], "error": ...}:
which checkpoint it restored, which it then knew to be complete, and what it complained of.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.train.engine.test_checkpoints import assert_equal, state
from train.engine.checkpoints import Checkpoints


def save_for_ever(folder: Path, told: int) -> None:
    with Checkpoints(folder, 2, {}, report=_complain) as checkpoints:
        found = checkpoints.restore_latest(state(0.0))
        step = 0
        if found:
            restored, step = found
            assert_equal(restored, state(step))
        while True:
            os.write(told, f"{step}\n".encode())
            step += 1
            checkpoints.save(step, state(step))
            checkpoints.score(step, step % 5 / 10)
            checkpoints.wait()


def _complain(text: str) -> None:
    raise AssertionError(text)


def run_and_kill(folder: Path, rng: random.Random) -> tuple[list[int], str]:
    steps, told = os.pipe()
    errors, complained = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(complained, 2)
        try:
            save_for_ever(folder, told)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(told)
    os.close(complained)
    with open(steps) as steps, open(errors) as errors:
        await_moment(folder, rng)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [int(line) for line in steps], errors.read()


def await_moment(folder: Path, rng: random.Random) -> None:
    """Any time at all, or just after something in the folder has got or lost its name."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 1))
        return
    deadline = time.monotonic() + 10  # no change comes any more from one that complained
    for _ in range(rng.randrange(1, 12)):
        before = os.listdir(folder)
        while os.listdir(folder) == before and time.monotonic() < deadline:
            time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.003))


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(0)
    for _ in range(count):
        steps, error = run_and_kill(folder, rng)
        print(json.dumps({"steps": steps, "error": error}), flush=True)
