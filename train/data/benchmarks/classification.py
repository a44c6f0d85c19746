"""The benchmark of the training transform of classification, against Pillow's, as in timm."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.data.benchmarks.images import Kind, photograph
from train.data.benchmarks.timing import Seconds, seconds
from train.data.pillow_reference import PillowTransform
from train.data.pipeline import Example, Source
from train.data.randaugment import Operation
from train.data.sources import FolderSource
from train.data.transforms import Draws, TrainTransform

IMAGES = Kind(500, 375, 60_000)


class Stages(Protocol):
    """The stages of a training transform; the type of images is its own."""

    def random_map(self, example: Example, rng: np.random.Generator) -> Example: ...

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Draws: ...

    def decode(self, example: Example) -> Any: ...

    def crop(self, image: Any, box: tuple[int, int, int, int]) -> Any: ...

    def mirror(self, image: Any) -> Any: ...

    def augment(self, image: Any, operations: list[Operation]) -> Any: ...


@dataclasses.dataclass(frozen=True)
class ClassificationBenchmark:
    """See `Benchmark`.

    Attributes:
      transform: to measure; its images have 3 channels.
    """

    transform: TrainTransform
    batch_size: int = 64
    shortest: int = 1024

    @property
    def transforms(self) -> Mapping[str, Stages]:
        """See `Benchmark`."""
        return {"train": self.transform, "pillow": in_pillow(self.transform)}

    def write(self, folder: Path, count: int) -> str:
        """See `Benchmark`."""
        place = folder / "train" / "photographs"
        place.mkdir(parents=True)
        sizes = []
        for index in range(count):
            data = photograph(np.random.default_rng(index), IMAGES)
            (place / f"{index:05}.jpg").write_bytes(data)
            sizes.append(len(data))
        return f"JPEG files of {IMAGES} and {statistics.mean(sizes) / 1000:.0f} kB"

    def open(self, folder: Path) -> Source:
        """See `Benchmark`."""
        return FolderSource(folder, "train")

    def stage_seconds(self, source: Source, name: str) -> dict[str, Seconds]:
        """See `Benchmark`."""
        transform = self.transforms[name]
        indices = range(len(source))
        examples = [source[index] for index in indices]
        images = [transform.decode(example) for example in examples]
        draws = [
            transform.draw(IMAGES.width, IMAGES.height, np.random.default_rng(index))
            for index in indices
        ]
        boxes = [each.box for each in draws]
        crops = [transform.crop(image, box) for image, box in zip(images, boxes, strict=True)]
        operations = [each.operations for each in draws]
        generators = [np.random.default_rng(index) for index in indices]
        return {
            "read": seconds(source.__getitem__, indices),
            "decode": seconds(transform.decode, examples),
            "crop, resize": seconds(transform.crop, images, boxes),
            "flip": seconds(transform.mirror, crops),
            "augment": seconds(transform.augment, crops, operations),
            "whole transform": seconds(transform.random_map, examples, generators),
        }


def in_pillow(transform: TrainTransform) -> PillowTransform:
    """The same recipe in Pillow, with its bicubic resizing in place of OpenCV's."""
    resizing = "bilinear" if transform.resizing == "bilinear" else "bicubic"
    return PillowTransform(dataclasses.replace(transform, resizing=resizing))
