"""Fixtures of the training tests."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from train.data.sources import prepare

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_configure(config):
    # Grain's worker processes read absl flags, which only absl.app parses.
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the digits lie prepared for the whole session."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    prepare({"name": "digits", "data_dir": str(folder), "folder": None})
    return folder


@pytest.fixture
def start(data_dir):
    """Starts `python -m train.main` on the tiny configuration; returns the process."""
    running = []

    def start(workdir, *overrides, config="tests/train/tiny.py", devices=1, **environment):
        command = [
            sys.executable, "-m", "train.main", "--config", config, "--workdir", str(workdir),
            f"--config.data.data_dir={data_dir}", *overrides,
        ]  # fmt: skip
        variables = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            **environment,
        }
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def train(start):
    """Runs `python -m train.main` to its end; returns (exit status, output, errors)."""

    def train(*arguments, **keywords):
        process = start(*arguments, **keywords)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return train


def once_a_session(tmp_path_factory, name, make):
    """A folder that is filled on first use, once for all test processes together.

    Args:
      name: of the folder.
      make: called with the empty folder; fills it, and returns what JSON can hold.

    Returns:
      The folder, and what `make` returned.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    returned = folder.with_suffix(".json")
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not returned.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            returned.write_text(json.dumps(make(folder)))
    return folder, json.loads(returned.read_text())


@pytest.fixture
def undisturbed(tmp_path_factory, train):
    """The folder of a run that nothing disturbed, and what it printed; made on first use."""
    folder, (status, out, err) = once_a_session(tmp_path_factory, "finished", train)
    assert status == 0, err
    return folder, out
