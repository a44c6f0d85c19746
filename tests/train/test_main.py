"""Whole runs of `python -m train.main`, as a user starts them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from configs import finetune
from replk_jax import check_equivalence, load, save, save_torch
from replk_jax.checkpoint import read_description
from replk_jax.vision.preprocessing import Preprocessing
from tests.train import tiny
from tests.train.runs import STEPS, ends, losses, newest, start_two
from train.engine.checkpoints import Checkpoints
from train.engine.loop import run
from train.engine.step import TrainState
from train.errors import RunError
from train.tasks.classification import CLASSIFICATION


def test_a_run(undisturbed):
    workdir, out = undisturbed
    result = json.loads((workdir / "result.json").read_text())
    assert result["training"]["examples"] == result["merged"]["examples"] == 299
    average = result["ema"]
    for scores in (result, average):
        # The network has learnt, so that a wrong merge would show.
        assert scores["training"]["top1"] > 0.5
        assert scores["training"]["loss"] < 1.6
        assert scores["merged"]["top1"] == scores["training"]["top1"]
        assert 0 < scores["largest_difference"] < 1e-4
    assert average["training"]["loss"] != result["training"]["loss"]
    for text in (
        f"step {STEPS}/{STEPS}",
        "images/s",
        "learning rate",
        "GiB of memory on each device",
        f"EMA               top-1 {average['training']['top1']:.2%} of 299 images",
        f"evaluation        top-1 {result['training']['top1']:.2%} of 299 images",
        f"re-parameterized  top-1 {result['merged']['top1']:.2%}",
        f"{result['largest_difference']:.1e}",
        str(workdir / "checkpoints" / str(STEPS)),
        str(workdir / "metrics.jsonl"),
        str(workdir / "curve.png"),
    ):
        assert text in out
    assert (workdir / "curve.png").stat().st_size > 1000
    assert list((workdir / "tensorboard").iterdir())
    curve = losses(workdir)
    assert {5, 10, 46, STEPS} < set(curve)
    assert curve[STEPS] < 0.9 * curve[5]  # of mixtures, which cannot be told apart
    network = read_description(workdir / "checkpoints" / str(STEPS))
    assert network.model.architecture.kernel_sizes == (5,)
    assert network.class_names == tuple("0123456789")
    assert network.preprocessing == Preprocessing(16, None, mean=(0.305,), std=(0.376,))


def test_the_way_from_a_checkpoint_to_a_model(undisturbed):
    """README's, with the path of this run."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = next(block for block in blocks if "checkpoints" in block)
    path = undisturbed[0] / "checkpoints" / str(STEPS)
    code, count = re.subn(r"out/digits/checkpoints/\d+", str(path), code)
    assert count == 1
    names = {}
    exec(code, names)
    model, variables = names["model"], names["variables"]
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 1), np.float32)
    assert check_equivalence(model, variables, images).max_rel < 1e-4


def test_evaluating_the_moving_average_of_a_checkpoint(undisturbed, train, tmp_path):
    """With a configuration of another network and other images; the file says what it wants."""
    workdir, _ = undisturbed
    checkpoint = workdir / "checkpoints" / str(STEPS)
    status, out, err = train(
        tmp_path,
        "--config.mode=eval",
        f"--config.init_from={checkpoint}",
        "--config.init_ema",
        "--config.model.replknet.kernel_sizes=(13,)",
        "--config.data.image_size=24",
    )
    assert status == 0, err
    result = json.loads((tmp_path / "evaluation.json").read_text())
    wanted = json.loads((workdir / "result.json").read_text())["ema"]
    assert result["training"] == wanted["training"]
    assert result["merged"] == wanted["merged"]
    assert result["preprocessing"]["image_size"] == 16
    assert f"top-1 {result['merged']['top1']:.2%}, top-5" in out
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.exhaustive
def test_a_run_with_a_worker_process_leaves_nothing_behind(train, tmp_path):
    arguments = ["--config.data.reading.workers=1", "--config.epochs=1"]
    status, out, err = train(tmp_path, *arguments)
    assert status == 0, err
    assert "top-1" in out
    assert "leaked" not in err
    assert "resource_tracker" not in err
    assert "Exception ignored" not in err


FINETUNE = "configs/finetune.py"


@pytest.fixture
def brightness(tmp_path):
    """Folders of grey images of two classes, dark and light."""
    folder = tmp_path / "brightness"
    for split in ("train", "val"):
        for label in ("dark", "light"):
            (folder / split / label).mkdir(parents=True)
            for i in range(16):
                pixels = np.full((8, 8), 250 * (label == "light") + i % 5, np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


def test_fine_tuning(undisturbed, train, brightness, tmp_path):
    """configs/finetune.py with a small network: one step of a vanishing learning rate leaves what
    was loaded, but for a new classifier."""
    checkpoint = undisturbed[0] / "checkpoints" / str(STEPS)
    pth = tmp_path / "digits.pth"
    before = load(checkpoint)
    save_torch(before.variables, before.model, pth)
    arguments = [
        f"--config.init_from={pth}",
        f"--config.data.folder={brightness}",
        *(f"--config.model.replknet.{name}={value}" for name, value in tiny.NETWORK.items()),
        "--config.model.in_channels=1",
        "--config.data.image_size=16",
        "--config.data.mean=(0.305,)",
        "--config.data.std=(0.376,)",
        "--config.epochs=1",
        "--config.optimizer.warmup_epochs=0",
        "--config.optimizer.peak_lr=1e-9",
        "--config.optimizer.final_lr=1e-9",
    ]
    status, _, err = train(tmp_path / "out", *arguments, config=FINETUNE)
    assert status == 0, err
    assert "which has 10 classes, is left out" in err
    after = load(tmp_path / "out" / "checkpoints" / "1")
    assert after.class_names == ("dark", "light")
    assert after.variables["params"].pop("head")["kernel"].shape == (16, 2)
    before.variables["params"].pop("head")
    chex.assert_trees_all_close(after.variables["params"], before.variables["params"], atol=1e-7)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["run", "safetensors"])
def test_fine_tuning_learns(undisturbed, brightness, tmp_path, kind):
    """Other classes at another resolution, from the EMA of a run, or from a file; with
    thirty times the recipe's learning rate, for the network is small."""
    config = finetune.get_config()
    checkpoint = undisturbed[0] / "checkpoints" / str(STEPS)
    if kind == "safetensors":
        save(tmp_path / "digits.safetensors", load(checkpoint))
        config.init_from = str(tmp_path / "digits.safetensors")
    else:
        config.init_from, config.init_ema = str(checkpoint), True
    config.model.replknet.update(tiny.NETWORK)
    config.model.in_channels = 1
    config.data.folder = str(brightness)
    config.data.image_size = 24
    config.data.mean, config.data.std = (0.305,), (0.376,)
    config.optimizer.peak_lr *= 30
    config.log_every_steps = 1
    with pytest.warns(UserWarning, match="which has 10 classes, is left out"):
        scores = run(config, tmp_path / "out", CLASSIFICATION)["training"]
    curve = losses(tmp_path / "out")
    assert len(curve) == 30
    assert np.isfinite(list(curve.values())).all()
    assert curve[30] < 0.9 * curve[1]
    assert scores["top1"] > 0.9


def test_a_finished_run_started_again_evaluates_again(undisturbed, train, tmp_path):
    """And what it rewrites at every start, it replaces whole: a kill while the configuration was
    written does no harm."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "again")
    before = json.loads((workdir / "result.json").read_text())
    (workdir / "config.json.partial").write_text('{"seed"')
    status, out, err = train(workdir)
    assert status == 0, err
    assert f"{workdir / 'checkpoints' / str(STEPS)} is the end of this run" in out
    assert json.loads((workdir / "result.json").read_text()) == before
    assert not (workdir / "config.json.partial").exists()
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_what_stops_one_process_stops_all(start, tmp_path):
    began = time.monotonic()
    good, bad = "--config.data.train_split=train", "--config.data.train_split=trian"
    (status, _, err), (other_status, _, other_err) = ends(start_two(start, tmp_path, (good, bad)))
    assert (status, other_status) == (1, 1)
    assert "Process 1 failed" in err
    assert "no split 'trian'" in other_err
    assert time.monotonic() - began < 100  # and not the five minutes that JAX would wait


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path, capsys):
    """It names the step and the last good checkpoint, and that one is good indeed: with a
    learning rate that makes sense the run goes on from it."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.epochs = 0.25
    config.optimizer.warmup_epochs = 0.25
    config.checkpoints.every_steps = 1
    config.optimizer.peak_lr = 1e30
    with pytest.raises(RunError, match=r"became .* at step \d+\. (.|\n)*peak_lr") as caught:
        run(config, tmp_path, CLASSIFICATION)
    good = tmp_path / "checkpoints" / str(newest(tmp_path / "checkpoints"))
    assert f"The last good checkpoint is {good};" in str(caught.value)
    params = ocp.PyTreeCheckpointer().restore(good / "params")
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(params)) < 10
    config.optimizer.peak_lr = 0.004
    run(config, tmp_path, CLASSIFICATION)
    out = capsys.readouterr().out
    assert f"Resuming from {good}" in out
    assert "Since the last start config.optimizer.peak_lr was 1e+30, now 0.004" in out


def test_a_loss_that_is_not_finite_at_once(data_dir, tmp_path):
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.optimizer.peak_lr = 1e38
    config.optimizer.warmup_epochs = 0.0
    with pytest.raises(RunError, match="There is no checkpoint yet"):
        run(config, tmp_path, CLASSIFICATION)


def test_fewer_epochs_than_are_done(data_dir, tmp_path):
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.epochs = 1.0
    with Checkpoints(tmp_path / "checkpoints", 1, {}) as checkpoints:
        checkpoints.save(STEPS, TrainState(STEPS, *[{"leaf": np.zeros(1)}] * 3))
    with pytest.raises(RunError, match=r"after the last of the 46 steps .*config\.epochs or"):
        run(config, tmp_path, CLASSIFICATION)


TINY, RECIPE = "tests/train/tiny.py", "configs/31b.py"
MISTAKES = [
    (TINY, "--config.batchsize=3", "batch_size"),
    (TINY, "--config.batch_size=many", "batch_size"),
    (TINY, "--config.model.name=replknet_31", "Did you mean 'replknet_31l'"),
    (TINY, "--config.model.replknet.kernel_sizes=(4,)", "odd"),
    (TINY, "--config.data.name=digitz", "Did you mean digits"),
    (TINY, "--config.data.eval_split=validation", "it has test, train"),
    (TINY, "--config.batch_size=3200", "do not fill one batch"),
    (TINY, "--config.accumulation=3", "config.accumulation = 3 does not divide"),
    (TINY, "--config.augmentation.mixup_group_size=3", "16 images"),
    (TINY, "--config.mesh.fsdp=3", "config.mesh.fsdp = 3 does not divide"),
    (TINY, "--config.model.remat=some", "model.remat must be None or one of full, save_depthwise"),
    (TINY, "--config.ema_decay=1", "config.ema_decay must be 0 or more and less than 1"),
    (TINY, "--config.data.resizing=cubic", "one of opencv, bicubic, bilinear; it is cubic"),
    (TINY, "--config.data.rand_augment=rand-x9", "'x9' of the RandAugment 'rand-x9'"),
    (TINY, "--config.model.in_channels=2", "1 (grey) or 3 (colour)"),
    (TINY, "--config.model.in_channels=3", "must have 3 values"),
    ("configs/mobilenet_v2.py:table9", "--config.seed=1", "no row 'table9'; it has table2_3x3, "),
    ("configs/digits.py:large", "--config.seed=1", "This configuration has no rows"),
    (TINY, "--config.epochs=0", "config.epochs must be positive"),
    (TINY, "--config.distributed.num_processes=2", "coordinator"),
    (TINY, "--config.mode=evaluate", "config.mode must be train or eval"),
    (TINY, "--config.mode=eval", "--config.init_from=FILE"),
    (TINY, "--config.init_from=nowhere.pth", "nowhere.pth"),
    (TINY, "--configs.batch_size=3", "Unknown command line flag"),
    (TINY, "--workdir=", "--workdir=DIR"),
    (TINY, "rubbish", "Unknown argument 'rubbish'"),
    ("configs/32b.py", "--config.seed=1", "configs/32b.py"),
    (RECIPE, "--config.seed=1", "imagenet2012 is not prepared"),
    (RECIPE, "--config.seed=1", "ILSVRC2012_img_train.tar"),
]


def test_mistakes_are_told_in_a_line(data_dir, tmp_path):
    """One after the other in forks of one process, which has imported what all of them need."""
    common = [f"--workdir={tmp_path}", f"--config.data.data_dir={data_dir}"]
    commands = [[f"--config={config}", *common, override] for config, override, _ in MISTAKES]
    runs = subprocess.run(
        [sys.executable, "-m", "tests.train.one_at_a_time"],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    for (_, override, message), (status, errors) in zip(
        MISTAKES, json.loads(runs.stdout), strict=True
    ):
        assert status == 1, (override, errors)
        assert message in errors, override
        assert "Traceback" not in errors, override


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
        "--config.model.replknet.kernel_sizes=(7,)",
        "--config.model.replknet.layers=(1,)",
        "--config.model.replknet.channels=(8,)",
        "--config.data.image_size=64",
        "--config.batch_size=8",
        "--config.eval_batch_size=4",
        "--config.epochs=2",
        "--config.optimizer.warmup_epochs=1",
        config="configs/31b.py",
    )
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["training"]["examples"] == 6
    assert "re-parameterized" in out


@pytest.mark.exhaustive
def test_the_demo_keeps_its_promise(train, tmp_path):
    """What `make demo` runs, data preparation and all: 97 % and more, before and after."""
    status, out, err = train(
        tmp_path / "run",
        f"--config.data.data_dir={tmp_path / 'data'}",
        config="configs/digits.py",
        JAX_DISABLE_MOST_OPTIMIZATIONS="false",
    )
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["training"]["top1"] >= 0.97
    assert result["merged"]["top1"] == result["training"]["top1"]
    assert result["largest_difference"] < 1e-4
    assert "re-parameterized" in out
