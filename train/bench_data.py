"""Measures the data pipeline: python -m train.bench_data --config configs/31b.py [--json FILE]

Makes JPEG files like photographs (500 x 375, 4:2:0, about 60 kB) and prints the images/s of each
stage of the configured training transform, and of the same steps in plain Pillow, as timm composes
them; then of both pipelines, with the configured threads and workers. The two take turns, in
rounds, of which the median counts. Rates of a core are by CPU time, which other programs on the
machine disturb little.
"""

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from replk_jax.benchmark.environment import describe_environment
from replk_jax.io.files import replace_json
from train.data import pipeline
from train.data.pillow_reference import PillowTransform
from train.data.pipeline import Example, Source
from train.data.sources import FolderSource
from train.data.transforms import TrainTransform
from train.engine import config as configuration
from train.engine import config_flags as command_line
from train.errors import RunError, stopping
from train.tasks import classification_config
from train.tasks.classification import make_train_transform

_IMAGES = flags.DEFINE_integer("images", 512, "how many images to make", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "how often all is measured", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "file to write the figures to")

_WIDTH, _HEIGHT, _BYTES = 500, 375, 60_000
_BATCH_SIZE = 64
_SHORTEST_PIPELINE = 1024  # images; fewer say little of threads

# Grain's shuffle takes 0.15 ms for an index among 128, and 0.003 ms among so many.
_EXAMPLES = 1_281_167

# Seconds of an image: {"cpu": of all threads of this process, "wall": by the clock}.
Seconds = dict[str, float]


def main(_: list[str]) -> None:
    with stopping():
        config = command_line.CONFIG.value
        configuration.check(config)
        classification_config.check(config)
        path = _JSON.value and command_line.flag_path("json", _JSON.value)
        if path and (path.is_dir() or not path.parent.is_dir()):  # before anything is measured
            raise RunError(f"--json={path} must name a file in a folder that exists.")
        figures = measure(config, _IMAGES.value, _ROUNDS.value)
        print(as_text(figures))
        if path:
            replace_json(path, figures)


def measure(config: ConfigDict, count: int, rounds: int) -> dict[str, Any]:
    """Times the stages and the pipelines on images that are made for it.

    Args:
      config: see configs/common.py; its images have 3 channels.
      count: how many images to make.
      rounds: how often each is timed.

    Returns:
      For JSON: `seconds[stage][name]` are `Seconds`, medians over the rounds, where the names are
      "train" (the training transform) and "pillow"; what they depend on lies beside them.
    """
    transform = make_train_transform(config.data, 3)
    transforms = {"train": transform, "pillow": in_pillow(transform)}
    cv2.setNumThreads(0)  # as the transform, whose stages are measured before the whole
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder) / "train" / "photographs", count)
        source = FolderSource(Path(folder), "train")
        taken = [
            {
                name: {
                    **stage_seconds(source, each),
                    "pipeline": pipeline_seconds(source, each, config.data.reading),
                }
                for name, each in transforms.items()
            }
            for _ in range(rounds)
        ]
    return {
        "images": count,
        "bytes": round(size),
        "reading": {
            "threads": pipeline.count_threads(config.data.reading),
            "workers": config.data.reading.workers,
        },
        "environment": describe_environment(),
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "seconds": {
            stage: {name: _median([each[name][stage] for each in taken]) for name in transforms}
            for stage in taken[0]["train"]
        },
    }


def in_pillow(transform: TrainTransform) -> PillowTransform:
    """The same recipe; Pillow's bicubic in place of OpenCV's."""
    resizing = "bilinear" if transform.resizing == "bilinear" else "bicubic"
    return PillowTransform(**vars(dataclasses.replace(transform, resizing=resizing)))


def stage_seconds(source: Source, transform: TrainTransform) -> dict[str, Seconds]:
    """Of each stage and of the whole transform, in one thread."""
    indices = range(len(source))
    examples = [source[index] for index in indices]
    images = [transform.decode(example) for example in examples]
    draws = [transform.draw(_WIDTH, _HEIGHT, np.random.default_rng(i)) for i in indices]
    boxes = [each.box for each in draws]
    crops = [transform.crop(image, box) for image, box in zip(images, boxes, strict=True)]
    operations = [each.operations for each in draws]
    generators = [np.random.default_rng(index) for index in indices]
    return {
        "read": _seconds(source.__getitem__, indices),
        "decode": _seconds(transform.decode, examples),
        "crop, resize": _seconds(transform.crop, images, boxes),
        "flip": _seconds(transform.mirror, crops),
        "augment": _seconds(transform.augment, crops, operations),
        "whole transform": _seconds(transform.random_map, examples, generators),
    }


def pipeline_seconds(
    source: Source, transform: TrainTransform, reading: ConfigDict
) -> dict[str, float | None]:
    """Of the pipeline from files to batches; of worker processes the CPU time is not known."""
    batches = pipeline.train_batches(
        _Repeated(source, _EXAMPLES),
        transform,
        batch_size=_BATCH_SIZE,
        seed=0,
        start_step=0,
        reading=reading,
        replace=False,
    )
    count = max(len(source), _SHORTEST_PIPELINE) // _BATCH_SIZE
    with contextlib.closing(batches):
        next(batches)  # when threads and workers have started
        seconds = _seconds(lambda _: next(batches), range(count))
    cpu = None if reading.workers else seconds["cpu"] / _BATCH_SIZE
    return {"cpu": cpu, "wall": seconds["wall"] / _BATCH_SIZE}


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """A source over and over, as long as a real one."""

    source: Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.source[index % len(self.source)]


def write_photographs(folder: Path, count: int) -> float:
    """Writes `count` JPEG files, always the same; returns the bytes of one, on average."""
    folder.mkdir(parents=True)
    sizes = []
    for index in range(count):
        data = photograph(np.random.default_rng(index))
        (folder / f"{index:05}.jpg").write_bytes(data)
        sizes.append(len(data))
    return statistics.mean(sizes)


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG file as a photograph might fill it, always of about the same length.

    Soft and hard shapes, and as much of fine grain as fills the bytes.
    """
    image = 128 + sum(_field(rng, cell) * cell / 2 for cell in (128, 32, 8))
    for _ in range(20):
        centre, axes = rng.integers((_WIDTH, _HEIGHT)), rng.integers(5, 120, 2)
        color, angle = rng.uniform(0, 255, 3), rng.uniform(0, 180)
        cv2.ellipse(image, (centre.tolist(), (2 * axes).tolist(), angle), color.tolist(), -1)
    grain = _field(rng, 2)
    quality = int(rng.integers(85, 96))
    for strength in range(0, 100, 2):
        pixels = np.clip(image + strength * grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        if file.tell() >= _BYTES:
            break
    return file.getvalue()


def _field(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Noise that is smooth over so many pixels, more of light than of colour, (H, W, 3)."""
    shape = (_HEIGHT // cell + 1, _WIDTH // cell + 1)
    coarse = rng.normal(size=(*shape, 1)) + rng.normal(0, 0.3, size=(*shape, 3))
    return cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)


def _seconds(function: Callable[..., Any], *arguments: Iterable[Any]) -> Seconds:
    """Of a call, over one for each of the arguments."""
    calls = list(zip(*arguments, strict=True))
    cpu, wall = time.process_time(), time.perf_counter()
    for values in calls:
        function(*values)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / len(calls), "wall": wall / len(calls)}


def _median(taken: list[dict[str, float | None]]) -> dict[str, float | None]:
    return {
        key: None if value is None else statistics.median(each[key] for each in taken)
        for key, value in taken[0].items()
    }


def as_text(figures: dict[str, Any]) -> str:
    """What `measure` returns as a table of images/s."""
    return "\n".join(_lines(figures))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    reading = figures["reading"]
    yield (
        f"{figures['images']} JPEG files of {_WIDTH} x {_HEIGHT} and {figures['bytes'] / 1000:.0f} "
        f"kB; {figures['environment']['processors']} processors; OpenCV {figures['opencv']}, "
        f"Pillow {figures['pillow']}"
    )
    yield f"pipeline: {reading['threads']} threads, {reading['workers']} worker processes"
    heads = ("of a core", 12), ("Pillow", 10), ("ratio", 8), ("by clock", 12), ("Pillow", 10)
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
