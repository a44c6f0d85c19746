"""A reference implementation of `SegmentationTransform` with Pillow and NumPy.

Each step is written in the plainest way. Tests compare with it, and train/bench_data.py measures
it. Its random draws are those of `SegmentationTransform`.
"""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from replk_jax.vision.label_sets import IGNORED
from train.data.photometric import Distortion
from train.data.segmentation_transforms import SegmentationDraws, SegmentationTransform

_HUES = 256  # of Pillow's circle; OpenCV's has 180


@dataclasses.dataclass(frozen=True)
class PillowSegmentationTransform:
    """`SegmentationTransform` with each step by Pillow and NumPy.

    Resizing is Pillow's bilinear filter, which smooths images that shrink; hues have another unit.

    Attributes:
      recipe: the transform.
    """

    recipe: SegmentationTransform

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """See `SegmentationTransform`."""
        image, mask = self.decode(example)
        height, width = mask.shape
        draws = self.draw(width, height, rng)
        image, mask = self.resize(image, mask, draws.size)
        image, mask = self.crop(image, mask, draws.offsets)
        if draws.mirrored:
            image, mask = self.mirror(image, mask)
        return self.pad(self.distort(image, draws.distortion), mask)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> SegmentationDraws:
        """See `SegmentationTransform`."""
        return self.recipe.draw(width, height, rng)

    def decode(self, example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationTransform`."""
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(example["image"])))
        values = np.array(Image.open(io.BytesIO(example["mask"])))
        mask = self.recipe.label_set.class_of_value[values].astype(np.uint8)
        return np.array(image.convert("RGB")), mask

    def resize(
        self, image: np.ndarray, mask: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationTransform`."""
        height, width = size
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        labels = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        return np.array(resized), np.array(labels)

    def crop(
        self, image: np.ndarray, mask: np.ndarray, offsets: tuple[tuple[int, int], ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationTransform`."""
        height, width = self.recipe.crop_size
        row, column = offsets[-1]
        for top, left in offsets[:-1]:
            classes, counts = np.unique(
                mask[top : top + height, left : left + width], return_counts=True
            )
            counts = counts[classes != IGNORED]
            if len(counts) > 1 and counts.max() / counts.sum() < self.recipe.cat_max_ratio:
                row, column = top, left
                break
        rows, columns = slice(row, row + height), slice(column, column + width)
        return image[rows, columns], mask[rows, columns]

    def mirror(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationTransform`."""
        return image[:, ::-1].copy(), mask[:, ::-1].copy()

    def distort(self, image: np.ndarray, distortion: Distortion | None) -> np.ndarray:
        """See `train.data.photometric.distort`."""
        if distortion is None:
            return image
        if distortion.brightness is not None:
            image = _scale(image, 1, distortion.brightness)
        if distortion.contrast is not None and distortion.contrast_first:
            image = _scale(image, distortion.contrast, 0)
        if distortion.saturation is not None:
            hsv = np.array(Image.fromarray(image).convert("HSV"))
            hsv[:, :, 1] = _scale(hsv[:, :, 1], distortion.saturation, 0)
            image = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
        if distortion.hue is not None:
            hsv = np.array(Image.fromarray(image).convert("HSV"))
            shift = round(distortion.hue * _HUES / 180)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + shift) % _HUES
            image = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
        if distortion.contrast is not None and not distortion.contrast_first:
            image = _scale(image, distortion.contrast, 0)
        return image

    def pad(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """See `SegmentationTransform`."""
        height, width = mask.shape
        below, right = self.recipe.crop_size[0] - height, self.recipe.crop_size[1] - width
        return {
            "image": np.pad(image, ((0, below), (0, right), (0, 0))),
            "mask": np.pad(mask, ((0, below), (0, right)), constant_values=IGNORED),
            "valid_size": np.array([height, width], np.int32),
        }


def _scale(values: np.ndarray, factor: float, addition: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * factor + addition, 0, 255).astype(np.uint8)
