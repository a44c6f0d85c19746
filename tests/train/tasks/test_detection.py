"""A detection network from data to average precision: runs, evaluations, bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax.detection.protocol import DetectionProtocol
from tests.helpers import data_mesh, random_variables
from tests.train import detection_pair, detection_sets, tiny_detection
from tests.train.runs import ends, free_port, losses, start_two
from train import preview as preview_program
from train.engine import parallel
from train.engine.evaluate import evaluate_checkpoint
from train.engine.interruption import Interrupted, Interruption
from train.engine.loop import run
from train.engine.setup import set_up
from train.engine.step import init_state, make_train_step
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.metric_writers import read_metrics
from train.tasks.detection import DETECTION, make_evaluations, make_task
from train.tasks.detection_config import build_detector

REPOSITORY = Path(__file__).resolve().parents[3]
BUCKETS = ((64, 96), (96, 64))
SQUARE = ((96, 96),)  # for one program in place of two
SIZES = [(40, 60), (60, 40)]
PROTOCOL = DetectionProtocol((96, 64))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs have one device, whose sums have one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_mesh", lambda *_, **__: data_mesh(1))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"train": 16, "val": 5}
    return detection_sets.write_coco(tmp_path_factory.mktemp("set"), counts, SIZES)


def configuration(folder, **fields):
    config = tiny_detection.get_config()
    config.data.folder = str(folder)
    config.data.buckets = config.test.buckets = SQUARE
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a run, and its result."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(configuration(folder), workdir, DETECTION)


@pytest.mark.slow
def test_a_run(finished):
    workdir, result = finished
    assert result["best_by"] == "AP"
    names = {"AP", "AP50", "AP75", "AP_small", "AR_100", "examples"}
    assert result["training"].keys() == names
    assert result["training"]["examples"] == 5
    assert result["merged"] == pytest.approx(result["training"], abs=2e-3)
    assert 0 < result["largest_difference"] < 1e-3
    assert result["protocol"] == PROTOCOL.in_words()
    assert result["preprocessing"]["kind"] == "detection"
    assert list(result["table"]) == list(detection_sets.CLASSES)
    aps = [row["AP"] for row in result["table"].values()]
    assert np.mean(aps) == pytest.approx(result["training"]["AP"])
    assert json.loads((workdir / "result.json").read_text()) == result

    lines = read_metrics(workdir / "metrics.jsonl")
    training = [line for line in lines if "train/loss" in line]
    for line in training:
        terms = [line[f"train/loss_{name}"] for name in ("cls", "bbox", "centerness")]
        assert sum(terms) == pytest.approx(line["train/loss"], rel=1e-5)
    assert training[-1]["train/loss"] < 0.7 * training[0]["train/loss"]
    scored = [line for line in lines if "eval/AP" in line]
    assert [line["step"] for line in scored] == [10, 20]
    assert {path.name for path in (workdir / "pictures").iterdir()} == {"eval_0.png", "eval_1.png"}
    network = replk_jax.load(workdir / "checkpoints" / "20")
    assert network.preprocessing == PROTOCOL
    assert network.class_names == detection_sets.CLASSES


@pytest.mark.exhaustive
def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, folder, tmp_path, monkeypatch):
    workdir, expected = finished
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "requested", lambda self, step: step == 7)
        with pytest.raises(Interrupted):
            run(configuration(folder), tmp_path, DETECTION)
    assert run(configuration(folder), tmp_path, DETECTION) == expected
    states = [replk_jax.load(path / "checkpoints" / "20").variables for path in (workdir, tmp_path)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


def first_losses(config, workdir, devices, steps=2):
    """The metrics of the first steps on some devices."""
    task = make_task(config)
    setup = set_up(config, workdir, task)
    mesh = data_mesh(devices)
    state = init_state(task.model, setup.optimizer, task.image_size, config.seed, mesh)
    step = make_train_step(
        task.model, setup.optimizer, task.loss, seed=config.seed, mesh=mesh,
        accumulation=config.accumulation,
    )  # fmt: skip
    batches = parallel.global_batches(task.training.batches(0, warn), mesh)
    found = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        found.append({name: float(value) for name, value in metrics.items()})
    return found


@pytest.mark.exhaustive
def test_devices_share_a_batch(folder, tmp_path):
    """The losses are divided by counts over the whole batch. The order of the sums differs."""
    config = configuration(folder, accumulation=2, **{"model.replknet.drop_path_rate": 0.0})
    one, two = (first_losses(config, tmp_path, devices) for devices in (1, 2))
    for expected, actual in zip(one, two, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.exhaustive
def test_two_processes_evaluate_together(folder):
    """Each image is evaluated once, by one of them; the main process computes AP, for both."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.detection_pair", str(i), str(port), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        )
        for i in range(2)
    ]
    texts = ends(processes)
    assert [status for status, _, _ in texts] == [0, 0], texts
    main, other = (json.loads(out.splitlines()[-1]) for _, out, _ in texts)
    alone = detection_pair.evaluate(folder, data_mesh(1))
    assert 0 < alone["scores"]["AP"] < 1
    assert main["scores"] == other["scores"] == pytest.approx(alone["scores"])
    assert alone["scores"]["examples"] == len(alone["images"]) == 5
    assert sorted(main["images"] + other["images"]) == sorted(alone["images"])
    assert min(len(main["images"]), len(other["images"])) == 2
    assert (main["truths read"], main["times computed"]) == (1, 1)
    assert (other["truths read"], other["times computed"]) == (0, 0)


@pytest.mark.exhaustive
def test_two_processes_do_what_one_does(folder, start, tmp_path):
    """With as many devices, the sums are the same. Batches have one of two shapes, which all
    processes have at the same step."""
    options = [
        f"--config.data.folder={folder}", "--config.steps=4", "--config.eval_every_steps=4",
        "--config.log_every_steps=1", "--config.test.buckets=((96, 96),)",
    ]  # fmt: skip
    config = {"config": "tests/train/tiny_detection.py"}
    one, two = tmp_path / "one", tmp_path / "two"
    both = start_two(start, two, *((option, option) for option in options), **config)
    for status, _, err in ends([*both, start(one, *options, devices=2, **config)]):
        assert status == 0, err
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (one, two)]
    for result in results:
        assert result["training"]["examples"] == 5
    assert results[1]["training"] == pytest.approx(results[0]["training"], abs=2e-3)
    assert len(list((two / "pictures").iterdir())) == 2


@pytest.mark.exhaustive
def test_no_objects_at_all(folder, tmp_path):
    """A batch without any: the losses of boxes are 0, and all are finite."""
    content = json.loads((folder / "annotations/instances_train.json").read_text())
    empty = {**content, "annotations": []}
    (folder / "annotations/instances_none.json").write_text(json.dumps(empty))
    config = configuration(
        folder, **{"data.train_split": "none", "data.images": "train", "data.filter_empty": False}
    )
    config.data.eval_split = "none"
    (metrics,) = first_losses(config, tmp_path, 1, steps=1)
    assert metrics["loss_bbox"] == metrics["loss_centerness"] == 0
    assert 0 < metrics["loss_cls"] < np.inf
    assert np.isfinite(metrics["grad_norm"])


@pytest.mark.exhaustive
def test_all_options_of_the_engine_at_once(folder, tmp_path, monkeypatch):
    """A frozen stem and frozen batch norms in the backbone, an EMA, accumulation, bfloat16,
    rematerialisation, and parameters sharded over two of four devices; two shapes of batches."""
    monkeypatch.setattr(parallel, "device_mesh", lambda *_, **__: data_mesh(4, fsdp=2))
    options = {
        "freeze.stages": 0, "freeze.batch_norm": True, "model.dtype": "bfloat16",
        "model.remat": "full", "mesh.fsdp": 2, "optimizer.warmup_steps": 0, "test.pictures": 1,
        "optimizer.layer_decay": 0.9, "optimizer.clip_norm": 35.0,
        "data.buckets": BUCKETS, "test.buckets": BUCKETS,
    }  # fmt: skip
    config = configuration(folder, steps=3, batch_size=8, accumulation=2, ema_decay=0.5, **options)
    result = run(config, tmp_path, DETECTION)
    for scores in (result, result["ema"]):
        assert scores["training"]["examples"] == 5
        assert scores["merged"].keys() == scores["training"].keys()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert {"eval/AP", "eval_ema/AP"} <= {name for line in lines for name in line}


@pytest.mark.exhaustive
def test_evaluation_of_a_file(folder, tmp_path, capsys):
    """By the protocol that is stored with it; merged as well."""
    config = configuration(folder, mode="eval", init_from=str(tmp_path / "network.safetensors"))
    model = build_detector(config, 2)
    network = replk_jax.Checkpoint(model, random_variables(model), PROTOCOL, detection_sets.CLASSES)
    replk_jax.save(config.init_from, network)
    config.test.limits = (64, 32)
    result = evaluate_checkpoint(config, tmp_path, DETECTION)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    assert result["protocol"] == PROTOCOL.in_words()
    assert "disc" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    config.data.eval_as_configured = True
    evaluation = make_evaluations(config, network)["eval"]
    assert evaluation.preprocessing == DetectionProtocol((64, 32))


def test_files_that_do_not_fit(folder):
    config = configuration(folder, init_from="FILE")
    model = build_detector(config, 2)
    other = replk_jax.Checkpoint(model, {}, PROTOCOL, ("square", "ring"))
    with pytest.raises(RunError, match="class 1 is 'ring' in the file and 'disc' in the split"):
        make_evaluations(config, other)
    classifier = replk_jax.create_model("replknet_31b", num_classes=2)
    with pytest.raises(RunError, match="FILE has a RepLKNet, which is no detector"):
        make_evaluations(config, replk_jax.Checkpoint(classifier, {}))


def test_batches_are_those_of_the_buckets(folder):
    task = make_task(configuration(folder, **{"data.buckets": (), "test.buckets": ()}))
    training, evaluation = task.training, task.evaluations["eval"].examples
    assert training.steps_per_epoch == 3  # of the 13 images with objects
    batches = training.batches(0, warn)
    shapes = {next(batches)["image"].shape for _ in range(2 * training.steps_per_epoch)}
    assert shapes == {(4, *size, 3) for size in BUCKETS}
    counts = {}
    for batch in evaluation.batches(warn):
        shape = batch["image"].shape
        counts[shape] = counts.get(shape, 0) + batch["mask"].sum()
    assert counts == {(4, 64, 96, 3): 3, (4, 96, 64, 3): 2}


def test_preview(folder):
    """Images with boxes and masks; the captions count objects."""
    config = configuration(folder, **{"data.masks": True})
    shown = DETECTION.preview(config, 3)
    assert shown.pictures.shape == (3, 96, 96, 3)
    config.batch_size = 3
    batch = next(make_task(config).training.batches(0, warn))
    assert (shown.pictures != batch["image"]).any(axis=(1, 2, 3)).all()
    for lines, valid in zip(shown.captions, batch["valid"], strict=True):
        assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == valid.sum()
    figure = preview_program.preview(config, 3)
    assert figure.get_size_inches()[0] > 0
    with pytest.raises(RunError, match="--count=5 is more than the 3"):
        DETECTION.preview(config, 5)


def test_examination(folder):
    examination = DETECTION.examine(configuration(folder))
    assert not [finding for finding in examination.findings if finding.severity == "error"]
