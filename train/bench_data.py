"""Benchmarks the data pipeline: python -m train.bench_data --config configs/31b.py [--json FILE]

It makes JPEG files like photographs (500 x 375, 4:2:0, about 60 kB) and prints the images/s of each
stage of the configured training transform, and of the same stages in Pillow, composed as in timm.
Then it runs both pipelines, with the configured threads and workers. The two alternate, and results
are medians over the rounds. Rates per core are by CPU time, so that other programs on the machine
have little influence.
"""

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

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
from train.data.randaugment import Operation
from train.data.sources import FolderSource
from train.data.transforms import Draws, TrainTransform
from train.engine import config as configuration
from train.engine import config_flags as command_line
from train.errors import RunError, stopping
from train.tasks import classification_config
from train.tasks.classification import make_train_transform

_IMAGES = flags.DEFINE_integer("images", 512, "number of images to make", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "number of measurements of each stage", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "file to write the results to")

_WIDTH, _HEIGHT, _BYTES = 500, 375, 60_000
_BATCH_SIZE = 64
_SHORTEST_PIPELINE = 1024  # images; with fewer, starting the threads has too much weight

# The size of ImageNet. Grain's shuffle takes 0.003 ms for an index there; in a set of 128, 0.15 ms.
_EXAMPLES = 1_281_167

# Seconds per image: {"cpu": CPU time of all threads of this process, "wall": wall-clock time}.
Seconds = dict[str, float]


class Stages(Protocol):
    """The stages of a training transform; the type of images is its own."""

    def random_map(self, example: Example, rng: np.random.Generator) -> Example: ...

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Draws: ...

    def decode(self, example: Example) -> Any: ...

    def crop(self, image: Any, box: tuple[int, int, int, int]) -> Any: ...

    def mirror(self, image: Any) -> Any: ...

    def augment(self, image: Any, operations: list[Operation]) -> Any: ...


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
    transform = make_train_transform(config.data, 3)
    transforms: dict[str, Stages] = {"train": transform, "pillow": in_pillow(transform)}
    cv2.setNumThreads(0)  # the transform sets it too, but its stages are measured first
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder) / "train" / "photographs", count)
        source = FolderSource(Path(folder), "train")
        measured = [
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
            stage: {name: _median([each[name][stage] for each in measured]) for name in transforms}
            for stage in measured[0]["train"]
        },
    }


def in_pillow(transform: TrainTransform) -> PillowTransform:
    """The same recipe in Pillow, with its bicubic resizing in place of OpenCV's."""
    resizing = "bilinear" if transform.resizing == "bilinear" else "bicubic"
    return PillowTransform(dataclasses.replace(transform, resizing=resizing))


def stage_seconds(source: Source, transform: Stages) -> dict[str, Seconds]:
    """The time of each stage and of the whole transform, in one thread."""
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
    source: Source, transform: Stages, reading: ConfigDict
) -> dict[str, float | None]:
    """The time of the pipeline from files to batches; "cpu" is None with worker processes."""
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
        next(batches)  # starts threads and workers
        seconds = _seconds(lambda _: next(batches), range(count))
    cpu = None if reading.workers else seconds["cpu"] / _BATCH_SIZE
    return {"cpu": cpu, "wall": seconds["wall"] / _BATCH_SIZE}


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """The examples of a source, repeated up to a length."""

    source: Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.source[index % len(self.source)]


def write_photographs(folder: Path, count: int) -> float:
    """Writes `count` JPEG files, the same for each call; returns their mean size in bytes."""
    folder.mkdir(parents=True)
    sizes = []
    for index in range(count):
        data = photograph(np.random.default_rng(index))
        (folder / f"{index:05}.jpg").write_bytes(data)
        sizes.append(len(data))
    return statistics.mean(sizes)


def photograph(rng: np.random.Generator) -> bytes:
    """A synthetic JPEG file of about `_BYTES` bytes.

    It has soft and hard shapes, and as much noise as makes up the size.
    """
    image = 128 + np.sum([_noise(rng, cell) * cell / 2 for cell in (128, 32, 8)], axis=0)
    for _ in range(20):
        centre, axes = rng.integers((_WIDTH, _HEIGHT)), rng.integers(5, 120, 2)
        color, angle = rng.uniform(0, 255, 3), rng.uniform(0, 180)
        cv2.ellipse(image, (centre.tolist(), (2 * axes).tolist(), angle), color.tolist(), -1)
    grain = _noise(rng, 2)
    quality = int(rng.integers(85, 96))
    data = b""
    for strength in range(0, 100, 2):
        data = _jpeg(np.clip(image + strength * grain, 0, 255).astype(np.uint8), quality)
        if len(data) >= _BYTES:
            break
    return data


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Noise that is smooth over `cell` pixels, stronger in luminance than in colour, (H, W, 3)."""
    shape = (_HEIGHT // cell + 1, _WIDTH // cell + 1)
    coarse = rng.normal(size=(*shape, 1)) + rng.normal(0, 0.3, size=(*shape, 3))
    return cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)


def _seconds(function: Callable[..., Any], *arguments: Iterable[Any]) -> Seconds:
    """The mean time of a call; there is one for each item of the arguments."""
    calls = list(zip(*arguments, strict=True))
    cpu, wall = time.process_time(), time.perf_counter()
    for values in calls:
        function(*values)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / len(calls), "wall": wall / len(calls)}


def _median(measured: list[dict[str, float | None]]) -> dict[str, float | None]:
    values = {key: [each[key] for each in measured] for key in measured[0]}
    known = {key: [x for x in samples if x is not None] for key, samples in values.items()}
    return {key: statistics.median(samples) if samples else None for key, samples in known.items()}


def as_text(figures: dict[str, Any]) -> str:
    """The results of `measure` as a table of images/s."""
    return "\n".join(_lines(figures))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    reading = figures["reading"]
    yield (
        f"{figures['images']} JPEG files of {_WIDTH} x {_HEIGHT} and {figures['bytes'] / 1000:.0f} "
        f"kB; {figures['environment']['processors']} processors; OpenCV {figures['opencv']}, "
        f"Pillow {figures['pillow']}"
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
