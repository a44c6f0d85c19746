"""Checkpoints: what is kept, what comes back, what happens when something is wrong."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from replk_jax.io import checksums
from train.engine.checkpoints import Checkpoints
from train.engine.step import TrainState
from train.errors import RunError


def state(value=1.0, width=8, devices=1, average=False):
    """A state of all kinds of leaves; the kernel is split over the devices, the rest is not."""
    params = {
        "kernel": value + np.arange(4.0 * width, dtype=np.float32).reshape(4, width),
        "bias": np.full(width, value, jnp.bfloat16),
    }
    batch_stats = {"bn": {"mean": np.full(width, -value, np.float32)}}
    tree = TrainState(
        step=np.asarray(int(value), np.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=({"mu": np.full(width, value / 2, np.float32)}, np.asarray(int(value), np.int32)),
        ema={"params": jax.tree.map(np.negative, params), "batch_stats": batch_stats}
        if average
        else None,
    )
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "fsdp"), ()))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, split if leaf.ndim == 2 else whole), tree)


def fill(folder, *steps, **options):
    with Checkpoints(folder, len(steps), {}, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
            checkpoints.score(step, step / 10)


def restore(folder, like=None, **options):
    with Checkpoints(folder, 2, {}, **options) as checkpoints:
        return checkpoints.restore_latest(state(0.0) if like is None else like)


def assert_equal(restored, expected):
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def names(folder):
    return {path.name for path in folder.iterdir()}


def flip(file):
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 8), (8, 2)])
def test_round_trip_onto_other_devices(tmp_path, before, after):
    saved = state(3.0, devices=before, average=True)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        assert checkpoints.latest() is checkpoints.best() is None
        assert checkpoints.restore_latest(saved) is None
        checkpoints.save(3, saved)
        checkpoints.score(3, 0.5)
    like = state(0.0, devices=after, average=True)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )
    for wanted in (like, shapes):
        restored, step = restore(tmp_path, wanted)
        assert step == 3
        assert_equal(restored, saved)
        for leaf, there in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert leaf.sharding == there.sharding
        assert restored.params["bias"].dtype == jnp.bfloat16


def test_others_read_the_weights_alone(tmp_path):
    with Checkpoints(tmp_path, 2, {"model": {"name": "tiny"}}) as checkpoints:
        checkpoints.save(3, state(3.0))
    path = checkpoints.path(3)
    assert path == tmp_path / "3"
    params = ocp.StandardCheckpointer().restore(path / "params")
    np.testing.assert_array_equal(params["kernel"], state(3.0).params["kernel"])
    assert json.loads((path / "description" / "metadata").read_text())["model"]["name"] == "tiny"


def test_what_is_saved_may_be_donated(tmp_path):
    kept, given = state(3.0), state(3.0)
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(3, given)
        for _ in range(3):
            given = jax.block_until_ready(double(given))
    assert_equal(restore(tmp_path)[0], kept)


def test_keeps_the_latest_and_the_best(tmp_path):
    scores = {1: 0.3, 2: 0.9, 3: 0.5, 4: None, 5: 0.6, 6: None}
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step))
            if score is not None:
                checkpoints.score(step, score)
        checkpoints.wait()
        assert checkpoints.best() == 2
        assert checkpoints.latest() == 6
    assert names(tmp_path) == {"2", "5", "6"}
    with Checkpoints(tmp_path, 1, {}) as checkpoints:
        checkpoints.save(7, state(7))
        checkpoints.score(7, 0.9)  # as good, and later
    assert checkpoints.best() == 7
    assert names(tmp_path) == {"7"}


def test_scores_that_come_later(tmp_path):
    fill(tmp_path, 1)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(2, state(2))
        checkpoints.wait()
        assert [checkpoints.scored(step) for step in (1, 2)] == [True, False]
        checkpoints.score(2, 0.9)
    assert checkpoints.scored(2)
    assert checkpoints.best() == 2
    assert checksums.fault(tmp_path / "2") is None
    assert restore(tmp_path)[1] == 2


def test_what_was_half_written_is_not_taken_for_whole(tmp_path):
    fill(tmp_path, 1)
    for name in ("2.partial", "3.partial.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp"):
        (tmp_path / name / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        assert checkpoints.latest() == 1
    assert names(tmp_path) == {"1"}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: state(1, width=9), r"params/kernel is \(4, 8\), the model has \(4, 9\)"),
        (lambda: state(1).replace(opt_state=()), "do not match"),
        (lambda: state(1).replace(batch_stats={"bn": {"var": np.ones(8)}}), "var"),
    ],
)
def test_another_architecture_is_refused(tmp_path, like, message):
    """At once: older checkpoints would not fit either, and nothing is damaged."""
    fill(tmp_path, 1, 2)
    with pytest.raises(RunError, match=r"2 does not fit this configuration(.|\n)*" + message):
        restore(tmp_path, like())
    assert names(tmp_path) == {"1", "2"}


def test_a_moving_average_begins_from_the_parameters(tmp_path):
    fill(tmp_path, 2)
    said = []
    restored, _ = restore(tmp_path, state(0.0, average=True), report=said.append)
    assert_equal(restored.ema, state(2.0).variables)
    assert "the EMA starts from its parameters" in said[0]
    # Not the same memory, which a step that is given both could not use twice.
    assert jax.tree.leaves(restored.ema)[0] is not jax.tree.leaves(restored.variables)[0]
    jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), donate_argnums=0)(restored)


def test_a_moving_average_is_left_out(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(2, state(2.0, average=True))
    said = []
    restored, _ = restore(tmp_path, report=said.append)
    assert_equal(restored, state(2.0))
    assert f"The EMA in {tmp_path / '2'} is not used" in said[0]


def test_any_damaged_file_is_noticed_and_named(tmp_path):
    fill(tmp_path, 1)
    assert checksums.fault(tmp_path / "1") is None
    assert len(files(tmp_path / "1")) > 10
    for file in set(files(tmp_path / "1")) - {tmp_path / "1" / "score.json"}:
        name, whole = file.relative_to(tmp_path / "1").as_posix(), file.read_bytes()
        for damage in (Path.unlink, truncate, flip):
            damage(file)
            fault = checksums.fault(tmp_path / "1")
            assert fault if file.name == "checksums.json" else name in fault
            file.write_bytes(whole)
    assert checksums.fault(tmp_path / "1") is None


def test_a_damaged_checkpoint_is_set_aside(tmp_path):
    """The run goes back to the one before, and can save the same steps again."""
    fill(tmp_path, 1, 2, 3)
    flip(max(files(tmp_path / "2" / "params"), key=lambda file: file.stat().st_size))
    (tmp_path / "3" / "checksums.json").unlink()
    said = []
    restored, step = restore(tmp_path, report=said.append)
    assert step == 1
    assert_equal(restored, state(1.0))
    assert names(tmp_path) == {"1", "2.damaged", "3.damaged"}
    for text, damaged in zip(said, (3, 2), strict=True):
        assert f"{tmp_path / str(damaged)} is damaged" in text
        assert f"resuming from {tmp_path / '1'}" in text

    fill(tmp_path, 2, 3)
    assert restore(tmp_path)[1] == 3
    for file in files(tmp_path / "3"):
        file.unlink()
    assert restore(tmp_path, report=said.append)[1] == 2
    assert names(tmp_path) == {"2", "2.damaged", "3.damaged", "3.damaged-2"}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    fill(tmp_path, 1, 2)
    for step in "12":
        flip(tmp_path / step / "params" / "_METADATA")
    for _ in range(2):  # and no more at the second try
        with pytest.raises(RunError, match=r"2: params/_METADATA is altered(.|\n)*1: params"):
            restore(tmp_path)
        assert names(tmp_path) == {"1", "2"}


@contextlib.contextmanager
def full_disk():
    """No file grows beyond a few bytes, so that writing fails as on a full disk."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_stops_the_run(tmp_path):
    fill(tmp_path, 1)
    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        with full_disk():
            checkpoints.save(2, state(2))
            with pytest.raises(
                RunError, match=f"could not be written to {tmp_path}(.|\n)*/1\\. If"
            ):
                checkpoints.wait()
        assert (checkpoints.latest(), checkpoints.best()) == (1, 1)
        assert names(tmp_path) == {"1"}
    assert_equal(restore(tmp_path)[0], state(1.0))


def test_a_full_disk_is_reported_and_the_run_goes_on(tmp_path):
    fill(tmp_path, 1, 2)
    said = []
    with Checkpoints(tmp_path, 2, {}, on_failure="continue", report=said.append) as checkpoints:
        with full_disk():
            checkpoints.save(3, state(3))
            checkpoints.score(3, 0.9)
            checkpoints.save(4, state(4))
            assert len(said) == 1
            checkpoints.wait()
        assert len(said) == 2
        assert "could not be written" in said[1]
        assert (checkpoints.latest(), checkpoints.best()) == (2, 2)
        assert names(tmp_path) == {"1", "2"}
        checkpoints.save(4, state(4))
        checkpoints.score(4, 0.1)
    assert names(tmp_path) == {"2", "4"}
    assert len(said) == 2
    assert_equal(restore(tmp_path)[0], state(4.0))


def test_a_save_that_fails_besides_does_not_hide_what_stopped_the_run(tmp_path):
    (tmp_path / "1").write_text("in the way")

    def run():
        with Checkpoints(tmp_path, 2, {}) as checkpoints:
            checkpoints.save(1, state(1))
            raise RunError("no such cat")

    with pytest.raises(RunError, match="no such cat"):
        run()
    assert names(tmp_path) == {"1"}


@pytest.mark.parametrize("times", [12, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments(times, tmp_path):
    """SIGKILL, while programs start, restore, save and delete: each finds the latest that the one
    before knew to be complete, or a later one, whole and of one step."""
    log = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_saving", tmp_path, str(times)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    runs = [json.loads(line) for line in log.stdout.splitlines()]
    assert len(runs) == times
    known = 0
    for run in runs:
        assert run["error"] == ""
        for step in run["steps"]:  # first the one that was restored, then what was completed
            assert step >= known
            known = step
    assert known > times // 2
    assert sum(len(run["steps"]) > 1 for run in runs) > times // 8
    restored, step = restore(tmp_path)
    assert step >= known
    assert_equal(restored, state(step))
    assert not [name for name in names(tmp_path) if not name.isdecimal()]
