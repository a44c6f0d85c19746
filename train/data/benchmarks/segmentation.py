"""The benchmark of the training transform of segmentation, against one by Pillow and NumPy."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.data.benchmarks.images import Kind, mask, photograph
from train.data.benchmarks.timing import Seconds, seconds
from train.data.photometric import Distortion
from train.data.pillow_segmentation import PillowSegmentationTransform
from train.data.pipeline import Example, Source
from train.data.segmentation_sources import SegmentationFolder
from train.data.segmentation_transforms import SegmentationDraws, SegmentationTransform

IMAGES = Kind(683, 512, 60_000)  # the most frequent size of ADE20K
_LARGEST = 150  # value in the masks


class Stages(Protocol):
    """The stages of a training transform."""

    def random_map(self, example: Example, rng: np.random.Generator) -> Example: ...

    def draw(self, width: int, height: int, rng: np.random.Generator) -> SegmentationDraws: ...

    def decode(self, example: Example) -> tuple[np.ndarray, np.ndarray]: ...

    def resize(
        self, image: np.ndarray, mask: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def crop(
        self, image: np.ndarray, mask: np.ndarray, offsets: tuple[tuple[int, int], ...]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def mirror(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def distort(self, image: np.ndarray, distortion: Distortion | None) -> np.ndarray: ...

    def pad(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class SegmentationBenchmark:
    """See `Benchmark`.

    Attributes:
      transform: to measure, of the label set of ADE20K.
    """

    transform: SegmentationTransform
    batch_size: int = 16
    shortest: int = 256

    @property
    def transforms(self) -> Mapping[str, Stages]:
        """See `Benchmark`."""
        return {"train": self.transform, "pillow": PillowSegmentationTransform(self.transform)}

    def write(self, folder: Path, count: int) -> str:
        """See `Benchmark`."""
        images, masks = folder / "images/training", folder / "annotations/training"
        for place in (images, masks):
            place.mkdir(parents=True)
        sizes: list[int] = []
        for index in range(count):
            rng = np.random.default_rng(index)
            image, labels = photograph(rng, IMAGES), mask(rng, IMAGES, _LARGEST)
            (images / f"{index:05}.jpg").write_bytes(image)
            (masks / f"{index:05}.png").write_bytes(labels)
            sizes.append(len(image))
        return f"JPEG files of {IMAGES} and {statistics.mean(sizes) / 1000:.0f} kB with masks"

    def open(self, folder: Path) -> Source:
        """See `Benchmark`."""
        fields: dict[str, Any] = dict.fromkeys(
            ("image_suffix", "mask_suffix", "classes", "reduce_zero_label")
        )
        return SegmentationFolder.open(
            {**fields, "folder": str(folder), "format": "ade20k"}, "train"
        )

    def stage_seconds(self, source: Source, name: str) -> dict[str, Seconds]:
        """See `Benchmark`."""
        transform = self.transforms[name]
        indices = range(len(source))
        examples = [source[index] for index in indices]
        pairs = [transform.decode(example) for example in examples]
        images, masks = zip(*pairs, strict=True)
        draws = [
            transform.draw(IMAGES.width, IMAGES.height, np.random.default_rng(index))
            for index in indices
        ]
        sizes = [each.size for each in draws]
        offsets = [each.offsets for each in draws]
        distortions = [each.distortion for each in draws]
        resized = list(map(transform.resize, images, masks, sizes))
        crops = [
            transform.crop(*pair, places) for pair, places in zip(resized, offsets, strict=True)
        ]
        resized_images, resized_masks = zip(*resized, strict=True)
        cropped, labels = zip(*crops, strict=True)
        generators = [np.random.default_rng(index) for index in indices]
        return {
            "read": seconds(source.__getitem__, indices),
            "decode": seconds(transform.decode, examples),
            "resize": seconds(transform.resize, images, masks, sizes),
            "crop": seconds(transform.crop, resized_images, resized_masks, offsets),
            "flip": seconds(transform.mirror, cropped, labels),
            "distort": seconds(transform.distort, cropped, distortions),
            "pad": seconds(transform.pad, cropped, labels),
            "whole transform": seconds(transform.random_map, examples, generators),
        }
