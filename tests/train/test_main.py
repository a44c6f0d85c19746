"""Whole runs of `python -m train.main`, as a user starts them."""

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

STEPS = 23  # 1,498 digits in batches of 64


def weights(workdir):
    """All arrays of the last checkpoint, as one list."""
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    path = workdir / "checkpoints" / str(steps[-1])
    arrays = []
    for item in ("params", "batch_stats", "opt_state"):
        tree = ocp.PyTreeCheckpointer().restore(path / item)
        arrays += [np.asarray(leaf) for leaf in _leaves(tree)]
    return steps[-1], arrays


def _leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in _leaves(child)]
    return [] if tree is None else [tree]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Where the one undisturbed run of the session goes, made on first use."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def undisturbed(finished, train):
    """The folder of a run that nothing disturbed, and what it printed."""
    log = finished / "log.json"
    if not log.exists():
        log.write_text(json.dumps(train(finished)))
    status, out, err = json.loads(log.read_text())
    assert status == 0, err
    return finished, out


def test_a_run(undisturbed):
    workdir, out = undisturbed
    result = json.loads((workdir / "result.json").read_text())
    assert result["training"]["examples"] == result["merged"]["examples"] == 299
    assert result["merged"]["top1"] == pytest.approx(result["training"]["top1"], abs=0.01)
    assert 0 < result["largest_difference"] < 1e-3
    for text in (
        f"step {STEPS}/{STEPS}",
        "images_per_second",
        "learning_rate",
        f"test accuracy     {result['training']['top1']:.2%} of 299 images",
        f"re-parameterized  {result['merged']['top1']:.2%}",
        f"{result['largest_difference']:.1e}",
        str(workdir / "checkpoints" / str(STEPS)),
        str(workdir / "metrics.jsonl"),
        str(workdir / "curve.png"),
    ):
        assert text in out
    assert (workdir / "curve.png").stat().st_size > 1000
    assert list((workdir / "tensorboard").iterdir())
    curve = losses(workdir)
    assert set(curve) == {4, 8, 12, 16, 20, 23}
    assert curve[23] < curve[4]
    description = json.loads(
        (workdir / "checkpoints" / str(STEPS) / "description" / "metadata").read_text()
    )
    assert description["model"]["kernel_sizes"] == [5, 3]
    assert description["num_classes"] == 10


def test_a_finished_run_started_again_evaluates_again(undisturbed, train):
    workdir, _ = undisturbed
    before = json.loads((workdir / "result.json").read_text())
    status, out, err = train(workdir)
    assert status == 0, err
    assert f"Going on from {workdir / 'checkpoints' / str(STEPS)}" in out
    assert json.loads((workdir / "result.json").read_text()) == before


def test_killed_runs_end_with_the_same_parameters(undisturbed, start, train, tmp_path):
    """SIGKILL three times, at moments of the machine's choosing; to the bit."""
    rng = np.random.default_rng()
    checkpoints = tmp_path / "checkpoints"
    interrupted = 0
    for wanted in (1, 2, 4):
        process = start(tmp_path)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            # A folder appears under a temporary name as soon as a save begins.
            begun = len(list(checkpoints.iterdir())) if checkpoints.is_dir() else 0
            if begun >= wanted:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        interrupted += process.returncode == -signal.SIGKILL
    assert interrupted, "every run was over before it could be killed"
    status, _, err = train(tmp_path)
    assert status == 0, err

    step, actual = weights(tmp_path)
    expected_step, expected = weights(undisturbed[0])
    assert step == expected_step == STEPS
    assert len(actual) == len(expected) > 100
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path) == losses(undisturbed[0])
    before, after = (
        json.loads((workdir / "result.json").read_text()) for workdir in (undisturbed[0], tmp_path)
    )
    assert before == after


def test_eight_devices_give_the_same_curve(undisturbed, train, tmp_path):
    """The order of sums differs, 1e-7, and Adam lets that grow over 23 steps."""
    status, _, err = train(tmp_path, "--config.eval_batch_size=32", devices=8)
    assert status == 0, err
    one, eight = losses(undisturbed[0]), losses(tmp_path)
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=2e-3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["training"]["examples"] == 299


@pytest.mark.slow
def test_two_processes_give_the_same_curve(undisturbed, start, tmp_path):
    """Two hosts by configuration alone, four devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            tmp_path,
            f"--config.distributed.coordinator=127.0.0.1:{port}",
            "--config.distributed.num_processes=2",
            f"--config.distributed.process_id={process}",
            devices=4,
            JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        )
        for process in range(2)
    ]
    with ThreadPoolExecutor() as pool:  # a full pipe would stop the one that is not read
        outputs = list(pool.map(lambda process: process.communicate(timeout=300), processes))
    assert [process.returncode for process in processes] == [0, 0], outputs
    np.testing.assert_allclose(
        list(losses(tmp_path).values()), list(losses(undisturbed[0]).values()), rtol=2e-3
    )
    assert json.loads((tmp_path / "result.json").read_text())["training"]["examples"] == 299
    assert "test accuracy" in outputs[0][0]
    assert "test accuracy" not in outputs[1][0]


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    """It names the step and the last good checkpoint, which was saved before."""
    status, _, err = train(
        tmp_path, "--config.optimizer.peak_lr=1e38", "--config.optimizer.warmup_epochs=1.0"
    )
    assert status == 1
    assert "became" in err
    assert "at step" in err
    assert "peak_lr" in err
    saved = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    for path in saved:
        params = ocp.PyTreeCheckpointer().restore(path / "params")
        assert all(np.isfinite(leaf).all() for leaf in _leaves(params))
    assert ("There is no checkpoint yet" in err) == (not saved)
    if saved:
        assert str(max(saved, key=lambda path: int(path.name))) in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.batchsize=3", "batch_size"),
        ("--config.batch_size=many", "batch_size"),
        ("--config.model.name=replknet_31", "Did you mean 'replknet_31l'"),
        ("--config.model.kernel_sizes=(4,3)", "odd"),
        ("--config.data.name=digitz", "Did you mean digits"),
        ("--config.data.eval_split=validation", "it has test, train"),
        ("--config.batch_size=3000", "do not fill one batch"),
        ("--config.model.in_channels=2", "1 (grey) or 3 (colour)"),
        ("--configs.batch_size=3", "Unknown command line flag"),
        ("rubbish", "Unknown argument 'rubbish'"),
    ],
)
def test_mistakes_are_told_in_a_line(train, tmp_path, override, message):
    status, _, err = train(tmp_path, override)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_a_missing_configuration(train, tmp_path):
    status, _, err = train(tmp_path, config="configs/32b.py")
    assert status == 1
    assert "configs/32b.py" in err
    assert "Traceback" not in err


def test_imagenet_that_is_not_prepared(train, tmp_path):
    status, _, err = train(tmp_path, config="configs/31b.py")
    assert status == 1
    assert "imagenet2012 is not prepared" in err
    assert "ILSVRC2012_img_train.tar" in err
    assert "--config.data.folder" in err
    assert "Traceback" not in err


def test_the_imagenet_recipe_on_a_folder_of_images(train, tmp_path):
    """configs/31b.py with a small network, colour photographs and bfloat16."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("bright", "dark"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (40, 50, 3)) + (100 if name == "bright" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    status, out, err = train(
        tmp_path / "run",
        f"--config.data.folder={tmp_path / 'photos'}",
        "--config.model.kernel_sizes=(7,7,5,5)",
        "--config.model.layers=(1,1,1,1)",
        "--config.model.channels=(8,8,8,8)",
        "--config.data.image_size=64",
        "--config.batch_size=8",
        "--config.eval_batch_size=4",
        "--config.epochs=2",
        config="configs/31b.py",
    )
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["training"]["examples"] == 6
    assert "test accuracy" in out


@pytest.mark.usefixtures("undisturbed")  # it has prepared the data
def test_a_full_disk_stops_the_run_and_loses_nothing(start, train, tmp_path):
    """No file may grow beyond 20 kB: saving fails as on a full disk. With room again, the same
    command goes on."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        process = start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"could not be written to {tmp_path / 'checkpoints'}" in err
    assert "Make room" in err
    status, _, err = train(tmp_path)
    assert status == 0, err
