"""Detectors learn, from a folder to average precision, and files of them give the same."""

import pytest

import replk_jax
from tests.helpers import data_mesh
from tests.train import detection_sets, tiny_detection
from train.engine import parallel
from train.engine.evaluate import evaluate_checkpoint
from train.engine.loop import run
from train.reporting.metric_writers import read_metrics
from train.tasks.detection import DETECTION

SIDE = 64
STEPS = 100
LEARNED = 0.4  # AP


def configuration(folder, name):
    """Four images, without augmentation, are trained and evaluated on."""
    config = tiny_detection.get_config(name)
    config.data.folder = str(folder)
    config.data.eval_split = "train"
    config.data.scales, config.test.limits = ((SIDE, SIDE),), (SIDE, SIDE)
    config.data.flip = False
    config.model.replknet.drop_path_rate = 0.0
    config.optimizer.warmup_steps = 10
    config.optimizer.peak_lr = 1e-2
    config.steps = STEPS
    config.eval_every_steps = config.checkpoints.every_steps = config.log_every_steps = STEPS // 5
    return config


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["fcos", "mask_rcnn"])
def test_a_few_images_are_learned(name, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "device_mesh", lambda *_, **__: data_mesh(1))
    folder = detection_sets.write_coco(tmp_path / "set", {"train": 4}, [(SIDE, SIDE)])
    config = configuration(folder, name)
    result = run(config, tmp_path, DETECTION)
    masks = "mask" in name
    lines = read_metrics(tmp_path / "metrics.jsonl")
    for score in ("AP", "mask_AP") if masks else ("AP",):
        curve = [line[f"eval/{score}"] for line in lines if f"eval/{score}" in line]
        assert len(curve) == 5
        assert curve[-1] > curve[0] + 0.1
        assert result["training"][score] == pytest.approx(curve[-1], abs=2e-3)
        assert result["training"][score] > LEARNED
        # A detection may lose a threshold of the overlap to rounding.
        assert result["merged"][score] == pytest.approx(result["training"][score], abs=0.05)
    assert ("mask_AP" in result["training"]) == masks
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"eval_0.png", "eval_1.png"}

    network = replk_jax.load(tmp_path / "checkpoints" / str(STEPS))
    replk_jax.save(tmp_path / "network.safetensors", network)
    config.mode, config.init_from = "eval", str(tmp_path / "network.safetensors")
    again = evaluate_checkpoint(config, None, DETECTION)
    for structure in ("training", "merged"):
        assert again[structure] == pytest.approx(result[structure], abs=2e-3)
