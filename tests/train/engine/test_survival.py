"""Runs that are killed, asked to stop, short of room, damaged and moved elsewhere."""

import shutil
import signal
import time

import numpy as np
import pytest

from tests.train import tiny
from tests.train.engine.test_checkpoints import flip
from tests.train.runs import (
    STEPS,
    arrays,
    assert_same_curve,
    ends,
    evaluations,
    losses,
    newest,
    result,
    start_two,
)
from train.engine.evaluate import evaluate_checkpoint
from train.engine.interruption import EXIT_STATUS, Interrupted, Interruption
from train.engine.loop import run
from train.tasks.classification import CLASSIFICATION


def wait_until(condition, *processes):
    """While they work."""
    deadline = time.monotonic() + 200
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_what_befalls_a_run_leaves_no_trace(undisturbed, start, train, tmp_path):
    """SIGKILL while it saves; SIGTERM while it trains; then to the end, and all is the same to the
    bit."""
    checkpoints = tmp_path / "checkpoints"
    process = start(tmp_path)
    wait_until(lambda: newest(checkpoints) >= 10 and list(checkpoints.glob("*partial*")), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    before = newest(checkpoints)
    assert 0 < before < STEPS
    process = start(tmp_path)
    wait_until(lambda: newest(checkpoints) > before, process)
    process.send_signal(signal.SIGTERM)
    [(status, out, err)] = ends([process])
    assert status == EXIT_STATUS, err
    left_at = newest(checkpoints)
    assert f"Resuming from {checkpoints / str(before)}" in out
    assert f"a checkpoint of step {left_at} is saved. The same command resumes from it." in out
    assert before < left_at < STEPS

    status, out, err = train(tmp_path)
    assert status == 0, err
    assert f"Resuming from {checkpoints / str(left_at)}" in out
    actual, expected = (
        arrays(workdir / "checkpoints" / str(STEPS)) for workdir in (tmp_path, undisturbed[0])
    )
    assert len(actual) == len(expected) > 100
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert result(tmp_path) == result(undisturbed[0])
    assert evaluations(tmp_path) == evaluations(undisturbed[0])
    # Where it left, what was not yet reported was, so that two reports share five steps.
    curve, expected_curve = (
        {step: loss for step, loss in losses(workdir).items() if not left_at <= step < left_at + 5}
        for workdir in (tmp_path, undisturbed[0])
    )
    assert curve == expected_curve


@pytest.mark.slow
def test_two_processes(undisturbed, start, train, data_dir, tmp_path):
    """They follow the curve of one, leave together when one of them is asked, go on to the end as
    one would, and find what one finds in the evaluation."""
    workdir = tmp_path / "two"
    # The warm-up is that of four epochs; an EMA, which changes no loss, would only take time.
    shorter = "--config.epochs=1", "--config.ema_decay=0"
    processes = start_two(start, workdir, *zip(shorter, shorter, strict=True))
    wait_until(lambda: losses(workdir), *processes)
    processes[1].send_signal(signal.SIGTERM)
    (status, out, err), (other_status, other_out, other_err) = ends(processes)
    assert (status, other_status) == (EXIT_STATUS, EXIT_STATUS), err + other_err
    left_at = newest(workdir / "checkpoints")
    for said in (out, other_out):
        assert f"a checkpoint of step {left_at} is saved." in said
    assert_same_curve(
        *(
            {step: loss for step, loss in losses(folder).items() if step < min(left_at, 23)}
            for folder in (workdir, undisturbed[0])
        )
    )

    shutil.copytree(workdir, alone := tmp_path / "alone")
    (status, out, err), (_, other_out, _) = ends(
        start_two(start, workdir, *zip(shorter, shorter, strict=True))
    )
    assert status == 0, err
    assert f"Resuming from {workdir / 'checkpoints' / str(left_at)}" in out
    assert "re-parameterized" in out
    assert "re-parameterized" not in other_out
    assert "loss" not in other_out
    # One process goes on from the same checkpoint, and evaluates the end of the two.
    status, _, err = train(alone, *shorter)
    assert status == 0, err
    assert_same_curve(losses(workdir), losses(alone))
    config = tiny.get_config()
    config.mode, config.data.data_dir = "eval", str(data_dir)
    config.init_from = str(workdir / "checkpoints" / "46")
    evaluated = result(workdir)
    expected = evaluate_checkpoint(config, None, CLASSIFICATION)
    for structure in ("training", "merged"):
        assert evaluated[structure] == pytest.approx(expected[structure], rel=1e-5)
    assert evaluated["training"]["examples"] == 299


@pytest.mark.exhaustive
def test_the_same_end_on_eight_devices(undisturbed, train, tmp_path):
    """From a checkpoint of a single device, because the last one is damaged."""
    elsewhere = tmp_path / "eight"
    shutil.copytree(undisturbed[0], elsewhere)
    damaged = elsewhere / "checkpoints" / str(STEPS)
    flip(max(damaged.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size))
    status, out, err = train(
        elsewhere, "--config.mesh.fsdp=4", "--config.eval_batch_size=32", devices=8
    )
    assert status == 0, err
    assert f"{damaged} is damaged" in err
    assert "Resuming from" in out
    assert damaged.with_name(f"{STEPS}.damaged").is_dir()
    assert_same_curve(losses(elsewhere), losses(undisturbed[0]))
    for name in ("training", "merged"):
        one, other = result(elsewhere)[name], result(undisturbed[0])[name]
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)


def test_a_full_disk(start, tmp_path):
    """No file may grow beyond 20 kB: saving fails as on a full disk. A run that is told to goes on
    to its end without checkpoints; tests of `Checkpoints` have the run that stops."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        process = start(
            tmp_path,
            f"--config.epochs={4 / 46}",
            "--config.optimizer.warmup_epochs=0",
            "--config.checkpoints.every_steps=1",
            "--config.checkpoints.on_failure=continue",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1000",  # nothing torn goes there
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    [(status, out, err)] = ends([process])
    assert status == 0, err
    assert err.count("The run continues without it") == 4
    assert "re-parameterized" in out
    assert "/checkpoints" not in out  # the closing words know of none
    assert result(tmp_path)["training"]["examples"] == 299
    assert newest(tmp_path / "checkpoints") == 0


def test_an_evaluation_for_which_there_was_no_time(data_dir, tmp_path, monkeypatch):
    """Asked to stop at a step that has one, the run saves and leaves; it is made up for."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.epochs = 2 / 46
    config.optimizer.warmup_epochs = 0.0
    monkeypatch.setattr(Interruption, "requested", lambda self, step: step == 2)
    with pytest.raises(Interrupted):
        run(config, tmp_path, CLASSIFICATION)
    assert evaluations(tmp_path) == []
    for _ in range(2):  # the first makes it, the second finds it made
        final = run(config, tmp_path, CLASSIFICATION)
        [scores] = evaluations(tmp_path)
        assert scores["step"] == 2
        np.testing.assert_allclose(scores["eval/loss"], final["training"]["loss"], rtol=1e-5)
