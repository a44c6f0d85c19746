"""The benchmark of the data pipeline."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.common import get_config
from replk_jax.vision import label_sets
from tests.train.conftest import REPOSITORY
from train import bench_data
from train.data.benchmarks import segmentation
from train.data.benchmarks.classification import IMAGES, in_pillow
from train.data.benchmarks.images import mask, photograph
from train.data.masks import decode_mask
from train.data.pillow_reference import PillowTransform
from train.errors import RunError
from train.tasks.classification import make_train_transform


def test_photographs_are_such_and_always_the_same():
    data = [photograph(np.random.default_rng(seed), IMAGES) for seed in (0, 0, 1)]
    assert data[0] == data[1] != data[2]
    for each in data:
        image = Image.open(io.BytesIO(each))
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
        assert image.layer[0][1:3] == (2, 2)  # 4:2:0
        assert 55_000 < len(each) < 75_000


def test_masks_are_those_of_ade20k_and_always_the_same():
    data = [mask(np.random.default_rng(seed), segmentation.IMAGES, 150) for seed in (0, 0, 1)]
    assert data[0] == data[1] != data[2]
    for each in data:
        classes = decode_mask(each, "mask", label_sets.find("ade20k"))
        assert classes.shape == (512, 683)
        assert len(np.unique(classes)) > 5


def test_the_peer_is_the_same_recipe():
    config = get_config()
    for resizing, expected in {"opencv": "bicubic", "bilinear": "bilinear"}.items():
        config.data.resizing = resizing
        transform = make_train_transform(config.data, 3)
        peer = in_pillow(transform)
        assert isinstance(peer, PillowTransform)
        assert {**vars(transform), "resizing": expected} == vars(peer.recipe)


@pytest.fixture
def few_batches(monkeypatch):
    """Pipelines of 32 images."""
    find = bench_data.find_benchmark
    short = {"batch_size": 16, "shortest": 32}
    monkeypatch.setattr(
        bench_data, "find_benchmark", lambda config: dataclasses.replace(find(config), **short)
    )


def segmentation_config():
    """The fields of segmentation that the benchmark reads, for small crops."""
    data = {
        "limits": (256, 64),
        "ratio_range": (0.5, 2.0),
        "crop_size": (64, 64),
        "cat_max_ratio": 0.75,
        "flip": True,
        "photometric": True,
        "reading": {"threads": 2, "workers": 0},
    }
    return ConfigDict({"task": "segmentation", "data": data})


def test_segmentation_is_measured_and_printed(few_batches):
    figures = bench_data.measure(segmentation_config(), count=2, rounds=1)
    assert json.loads(json.dumps(figures)) == figures
    stages = ["read", "decode", "resize", "crop", "flip", "distort", "pad", "whole transform"]
    assert list(figures["seconds"]) == [*stages, "pipeline"]
    lines = bench_data.as_text(figures).splitlines()
    assert lines[0].startswith("2 JPEG files of 683 x 512 and ")
    assert [line[:16].strip() for line in lines[3:]] == [*stages, "pipeline"]
    whole = figures["seconds"]["whole transform"]
    rates = [f"{1 / whole[name]['cpu']:.0f}" for name in ("train", "pillow")]
    assert lines[-2].split()[2:4] == rates


def test_the_measured_pipeline_of_segmentation_is_twice_as_fast_as_its_peer():
    """By the report that the README quotes."""
    path = REPOSITORY / "replk_jax/benchmark/results/cpu_segmentation_data.json"
    seconds = json.loads(path.read_text())["seconds"]
    for stage in ("whole transform", "pipeline"):
        assert seconds[stage]["pillow"]["cpu"] >= 2 * seconds[stage]["train"]["cpu"]


def test_the_peer_of_segmentation_has_the_same_geometry(tmp_path):
    """Masks without resizing are equal; colours differ by the conversion of hues only."""
    config = segmentation_config()
    config.data.limits, config.data.ratio_range = (683, 512), (1.0, 1.0)
    benchmark = bench_data.find_benchmark(config)
    benchmark.write(tmp_path, 1)
    example = benchmark.open(tmp_path)[0]
    for seed in range(8):
        ours, peers = (
            transform.random_map(example, np.random.default_rng(seed))
            for transform in benchmark.transforms.values()
        )
        np.testing.assert_array_equal(ours["mask"], peers["mask"])
        np.testing.assert_array_equal(ours["valid_size"], peers["valid_size"])
        assert np.abs(ours["image"].astype(int) - peers["image"]).mean() < 6


def test_a_task_without_a_benchmark():
    with pytest.raises(RunError, match="no benchmark of the data of the task 'other'"):
        bench_data.find_benchmark(ConfigDict({"task": "other"}))


def check(figures, lines):
    """Figures of two images, and what was printed of them."""
    stages = ["read", "decode", "crop, resize", "flip", "augment", "whole transform", "pipeline"]
    assert list(figures["seconds"]) == stages
    for by_name in figures["seconds"].values():
        assert list(by_name) == ["train", "pillow"]
        for seconds in by_name.values():
            assert min(seconds.values()) > 0
    assert lines[0].startswith("2 JPEG files of 500 x 375 and 6")
    assert lines[1] == "pipeline: 2 threads, 0 worker processes"
    assert [line[:16].strip() for line in lines[3:]] == stages
    whole = figures["seconds"]["whole transform"]
    rates = [f"{1 / whole[name]['cpu']:.0f}" for name in ("train", "pillow")]
    assert lines[-2].split()[2:4] == rates


def test_everything_is_measured_and_printed(few_batches):
    config = get_config()
    config.data.image_size = 32
    config.data.reading = {"threads": 2, "workers": 0}
    figures = bench_data.measure(config, count=2, rounds=1)
    assert json.loads(json.dumps(figures)) == figures
    check(figures, bench_data.as_text(figures).splitlines())
    for seconds in figures["seconds"]["pipeline"].values():
        seconds["cpu"] = None  # as it is of worker processes
    assert len(bench_data.as_text(figures).splitlines()[-1].split()) == 3  # name, and both by clock


def test_the_program(tmp_path):
    path = tmp_path / "figures.json"
    command = [
        sys.executable, "-m", "train.bench_data", "--config=configs/31b.py", "--images=2",
        "--rounds=1", f"--json={path}", "--config.data.image_size=32",
        "--config.data.reading.threads=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(json.loads(path.read_text()), done.stdout.splitlines())


def test_the_report_that_the_readme_tells_of():
    """What the recipe of 31B was made for: 400 images/s of a core, twice as many as with Pillow."""
    path = REPOSITORY / "replk_jax/benchmark/results/cpu_data.json"
    seconds = json.loads(path.read_text())["seconds"]
    for stage in ("whole transform", "pipeline"):
        ours, pillow = (seconds[stage][name]["cpu"] for name in ("train", "pillow"))
        assert 1 / ours >= 400
        assert pillow / ours >= 2
