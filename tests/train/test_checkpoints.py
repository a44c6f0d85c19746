"""Checkpoints: what is kept, what comes back, what is said when something is wrong."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import data_mesh
from train import parallel
from train.checkpoints import Checkpoints
from train.errors import RunError
from train.step import TrainState


def state(value=1.0, width=8, devices=1):
    tree = TrainState(
        step=jnp.asarray(int(value), jnp.int32),
        params={
            "kernel": jnp.full((3, width), value),
            "bias": jnp.full(width, value, jnp.bfloat16),
        },
        batch_stats={"bn": {"mean": jnp.full(width, -value)}},
        opt_state=({"mu": jnp.full(width, value / 2)}, jnp.asarray(int(value))),
    )
    return jax.device_put(tree, parallel.replicated(data_mesh(devices)))


def test_round_trip_onto_other_devices(tmp_path):
    saved = state(3.0)
    with Checkpoints(tmp_path, 2, {"model": {"name": "tiny"}}) as checkpoints:
        checkpoints.save(3, saved, {"top1": 0.5})
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        assert checkpoints.latest() == checkpoints.best() == 3
        restored = checkpoints.restore(3, state(0.0, devices=4))
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    for leaf in jax.tree.leaves(restored):
        assert len(leaf.sharding.device_set) == 4
    assert restored.params["bias"].dtype == jnp.bfloat16
    # Whoever finds the folder can read the weights alone, and what they belong to.
    path = checkpoints.path(3)
    assert path == tmp_path / "3"
    params = ocp.StandardCheckpointer().restore(path / "params")
    np.testing.assert_array_equal(params["kernel"], saved.params["kernel"])
    assert '"tiny"' in (path / "description" / "metadata").read_text()


def test_keeps_the_latest_and_the_best(tmp_path):
    scores = {1: 0.3, 2: 0.9, 3: 0.5, 4: None, 5: 0.6, 6: None}
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        for step, top1 in scores.items():
            checkpoints.save(step, state(step), None if top1 is None else {"top1": top1})
        checkpoints.wait()
        assert checkpoints.best() == 2
        assert checkpoints.latest() == 6
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "5", "6"]


def test_what_was_half_written_is_not_taken_for_whole(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(1, state(1), None)
    (tmp_path / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        assert checkpoints.latest() == 1
    deadline = time.monotonic() + 30  # it is taken away in the background
    while list(tmp_path.glob("*tmp*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_save_that_fails_besides_does_not_hide_what_stopped_the_run(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(ocp.CheckpointManager, "close", fail)
    with pytest.raises(RunError, match="no such cat"), Checkpoints(tmp_path, 2, {}):
        raise RunError("no such cat")


def test_another_architecture_is_refused(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(1, state(1), None)
    with (
        pytest.raises(RunError, match="does not fit this configuration"),
        Checkpoints(tmp_path, 2, {}) as checkpoints,
    ):
        checkpoints.restore(1, state(1, width=9))


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(1, state(1), None)
    for file in (tmp_path / "1" / "params").rglob("*"):
        if file.is_file():
            file.unlink()
    with (
        pytest.raises(RunError, match=str(tmp_path / "1")),
        Checkpoints(tmp_path, 2, {}) as checkpoints,
    ):
        checkpoints.restore(1, state(1))
