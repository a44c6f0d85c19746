"""Benchmarks the data pipeline: python -m train.bench_data --config configs/31b.py [--json FILE]

It makes files like photographs (for classification 500 x 375; for segmentation 683 x 512, with
masks) and prints the images/s of each stage of the configured training transform, and of the same
stages with Pillow: composed as in timm for classification, with NumPy for segmentation. Then it
runs both pipelines, with the configured threads and workers. The two alternate, and results are
medians over the rounds. Rates per core are by CPU time, so that other programs on the machine have
little influence.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import PIL
from absl import flags
from ml_collections import ConfigDict

from replk_jax.benchmark.environment import describe_environment
from replk_jax.io.files import replace_json
from replk_jax.vision import label_sets
from train.data import pipeline
from train.data.benchmarks.classification import ClassificationBenchmark
from train.data.benchmarks.segmentation import SegmentationBenchmark
from train.data.benchmarks.timing import Benchmark, median, pipeline_seconds
from train.engine import config as configuration
from train.engine import config_flags as command_line
from train.engine.json_flag import json_path
from train.errors import RunError, stopping
from train.tasks import find_task
from train.tasks.classification import make_train_transform
from train.tasks.segmentation_config import build_transform

_IMAGES = flags.DEFINE_integer("images", 512, "number of images to make", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "number of measurements of each stage", lower_bound=1)


def main(_: list[str]) -> None:
    with stopping():
        config = command_line.CONFIG.value
        configuration.check(config)
        find_task(config).check(config)
        path = json_path()  # an error comes before anything is measured
        figures = measure(config, _IMAGES.value, _ROUNDS.value)
        print(as_text(figures))
        if path:
            replace_json(path, figures)


def measure(config: ConfigDict, count: int, rounds: int) -> dict[str, Any]:
    """Times the stages and the pipelines on synthetic images.

    Args:
      config: see configs/common.py; its images have 3 channels.
      count: number of images to make.
      rounds: number of measurements of each stage.

    Returns:
      The results for JSON: `seconds[stage][name]` are `Seconds`, medians over the rounds, where
      `name` is "train" (the training transform) or "pillow"; and the conditions of the
      measurement.
    """
    benchmark = find_benchmark(config)
    transforms = benchmark.transforms
    cv2.setNumThreads(0)  # the transform sets it too, but its stages are measured first
    with tempfile.TemporaryDirectory() as folder:
        files = benchmark.write(Path(folder), count)
        source = benchmark.open(Path(folder))
        measured = [
            {
                name: {
                    **benchmark.stage_seconds(source, name),
                    "pipeline": pipeline_seconds(benchmark, source, each, config.data.reading),
                }
                for name, each in transforms.items()
            }
            for _ in range(rounds)
        ]
    return {
        "images": count,
        "files": files,
        "reading": {
            "threads": pipeline.count_threads(config.data.reading),
            "workers": config.data.reading.workers,
        },
        "environment": describe_environment(),
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "seconds": {
            stage: {name: median([each[name][stage] for each in measured]) for name in transforms}
            for stage in measured[0]["train"]
        },
    }


def find_benchmark(config: ConfigDict) -> Benchmark:
    """The benchmark of the configured task and its transform.

    Raises:
      RunError: there is no benchmark for the task.
    """
    if config.task == "classification":
        return ClassificationBenchmark(make_train_transform(config.data, 3))
    if config.task == "segmentation":
        ade20k = label_sets.find("ade20k")
        return SegmentationBenchmark(build_transform(config.data, ade20k))
    raise RunError(f"There is no benchmark of the data of the task {config.task!r}.")


def as_text(figures: dict[str, Any]) -> str:
    """The results of `measure` as a table of images/s."""
    return "\n".join(_lines(figures))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    reading = figures["reading"]
    yield (
        f"{figures['images']} {figures['files']}; {figures['environment']['processors']} "
        f"processors; OpenCV {figures['opencv']}, Pillow {figures['pillow']}"
    )
    yield f"pipeline: {reading['threads']} threads, {reading['workers']} worker processes"
    heads = ("per core", 12), ("Pillow", 10), ("ratio", 8), ("wall clock", 12), ("Pillow", 10)
    yield f"{'images/s':16}" + "".join(f"{head:>{width}}" for head, width in heads)
    for stage, by_name in figures["seconds"].items():
        ours, pillow = by_name["train"], by_name["pillow"]
        cells = [_rate(ours["cpu"], 12), _rate(pillow["cpu"], 10)]
        cells.append(f"{pillow['cpu'] / ours['cpu']:8.2f}" if ours["cpu"] else f"{'':8}")
        cells += [_rate(ours["wall"], 12), _rate(pillow["wall"], 10)]
        yield f"{stage:16}{''.join(cells)}"


def _rate(seconds: float | None, width: int) -> str:
    return f"{'' if seconds is None else format(1 / seconds, '.0f'):>{width}}"


if __name__ == "__main__":
    command_line.run(main)
