"""Traces of a few steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from train.reporting.profiling import Profiler


@jax.jit
def train_step(x):
    return {"loss": jnp.sin(x @ x).sum()}


def profile(folder, first_step, total_steps, *, until=None, active=True):
    """A run that ends, or fails after the step `until`."""
    x = jnp.ones((64, 64))
    with Profiler(folder, first_step, total_steps, active=active) as profiler:
        for step in range(first_step + 1, total_steps + 1):
            profiler.step(step, train_step(x))
            if step == until:
                raise KeyboardInterrupt


def traced_steps(folder):
    """The steps in the one trace in a folder, for Perfetto; beside it lies that for XProf."""
    (path,) = folder.rglob("perfetto_trace.json.gz")
    (other,) = folder.rglob("*.xplane.pb")
    assert other.parent == path.parent
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]


@pytest.mark.parametrize(
    ("first_step", "total_steps", "steps"),
    [
        (0, 30, [10, 11, 12, 13, 14]),
        (0, 14, [10, 11, 12, 13, 14]),
        (100, 200, [110, 111, 112, 113, 114]),  # a run that goes on
        (0, 9, [5, 6, 7, 8, 9]),
        (7, 10, [9, 10]),  # not the first one, which compiles
    ],
)
def test_a_trace(tmp_path, capsys, first_step, total_steps, steps):
    profile(tmp_path / "profile", first_step, total_steps)
    assert traced_steps(tmp_path / "profile") == steps
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"A trace of steps {steps[0]} to {steps[-1]} is in {tmp_path / 'profile'}. To view it: "
    )


def test_a_run_that_ends_in_between(tmp_path):
    """Its trace is whole, and the next one can begin."""
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "one", 0, 30, until=12)
    assert traced_steps(tmp_path / "one") == [10, 11, 12, 13]  # the last one not begun
    profile(tmp_path / "two", 12, 30)
    assert traced_steps(tmp_path / "two") == [22, 23, 24, 25, 26]


def test_nothing_to_trace(tmp_path, capsys):
    for total_steps in (0, 1):
        profile(tmp_path / "profile", 0, total_steps)
    assert capsys.readouterr().err.count("No trace is made") == 2
    profile(tmp_path / "profile", 0, 30, active=False)
    profile(tmp_path / "profile", 0, 0, active=False)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "profile").exists()
