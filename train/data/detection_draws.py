"""Random draws of the augmentation of detection: sizes, crops and flips, before an image is read.

The draws for all images of an epoch are made at once, so that the sizes of the results are known
when batches are planned. The distributions are those of mmdetection 2.28 with RepLKNet's
configurations.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from replk_jax.detection.protocol import wide_and_high
from replk_jax.vision.keep_ratio import sizes_within

Size = tuple[int, int]  # (height, width)

# Uniform numbers for an image: flip, policy, size, first size; height, width, row and column of
# the crop.
UNIFORM_NUMBERS = 8


class ImageDraws(NamedTuple):
    """The random draws for an image.

    Attributes:
      mirrored: whether the image is flipped horizontally.
      crop: of the image at `first_size`: top, left, height and width; None for no crop.
      first_size: (height, width) to which the image is resized before the crop.
      size: (height, width) to which the image, or its crop, is resized.
    """

    mirrored: bool
    crop: tuple[int, int, int, int] | None
    first_size: Size
    size: Size


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws for n images; see `ImageDraws`.

    Attributes:
      mirrored: bool (n,).
      cropped: bool (n,).
      crops: int (n, 4).
      first_sizes, sizes: int (n, 2).
    """

    mirrored: np.ndarray
    cropped: np.ndarray
    crops: np.ndarray
    first_sizes: np.ndarray
    sizes: np.ndarray

    def of(self, image: int) -> ImageDraws:
        """The draws for one of the images."""
        top, left, height, width = self.crops[image].tolist()
        rows, columns = self.first_sizes[image].tolist()
        crop = (top, left, height, width) if self.cropped[image] else None
        height, width = self.sizes[image].tolist()
        return ImageDraws(bool(self.mirrored[image]), crop, (rows, columns), (height, width))


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """Multi-scale resizing, with a random crop before it or without, and flips.

    Attributes:
      scales: (long, short) limits of the sides; see `replk_jax.vision.keep_ratio.size_within`.
      crop_scales: likewise, of the first size of images that are cropped. () for no crops;
        otherwise half of the images are cropped.
      crop_sizes: (smallest, largest) of the sides of a crop; a shorter side of the image is the
        limit of both. All have the same probability.
      flip: whether half of the images are flipped horizontally: before all else if there are crops,
        after resizing if there are none, as in the published configurations.
    """

    scales: tuple[tuple[int, int], ...]
    crop_scales: tuple[tuple[int, int], ...] = ()
    crop_sizes: tuple[int, int] = (384, 600)
    flip: bool = True

    @property
    def flips_first(self) -> bool:
        """Whether flips precede resizing."""
        return bool(self.crop_scales)

    def draw(self, sizes: np.ndarray, uniform: np.ndarray) -> Draws:
        """The draws for images.

        Args:
          sizes: int (n, 2), height and width.
          uniform: float64 (n, `UNIFORM_NUMBERS`), random numbers in [0, 1).
        """
        flip, policy, scale, crop_scale, *of_crop = uniform.T
        mirrored = (flip < 0.5) & self.flip
        cropped = (policy >= 0.5) & bool(self.crop_scales)
        first_sizes = sizes_within(sizes, _choose(self.crop_scales or self.scales, crop_scale))
        smallest, largest = self.crop_sizes
        sides = _integers(
            np.minimum(first_sizes, smallest),
            np.minimum(first_sizes, largest) + 1,
            np.stack(of_crop[:2], axis=1),
        )
        offsets = _integers(
            np.zeros_like(sides), first_sizes - sides + 1, np.stack(of_crop[2:], axis=1)
        )
        before = np.where(cropped[:, None], sides, sizes)
        return Draws(
            mirrored,
            cropped,
            np.concatenate([offsets, sides], axis=1),
            first_sizes,
            sizes_within(before, _choose(self.scales, scale)),
        )


def default_buckets(scales: tuple[tuple[int, int], ...], multiple: int = 32) -> tuple[Size, ...]:
    """Two shapes, (height, width), that hold all wide and all high images.

    Args:
      scales: limits (long, short) of the images.
      multiple: of their sides.
    """
    longest, shortest = (max(limits) for limits in zip(*scales, strict=True))
    return wide_and_high(longest, shortest, multiple)


def choose_buckets(sizes: np.ndarray, buckets: tuple[Size, ...]) -> np.ndarray:
    """The smallest bucket that holds each size: its position in `buckets`; -1 if none does.

    Args:
      sizes: int (n, 2), height and width.
      buckets: (height, width). Of those with the same area the first one takes precedence.
    """
    chosen = np.full(len(sizes), -1)
    by_area = sorted(range(len(buckets)), key=lambda i: buckets[i][0] * buckets[i][1])
    for i in reversed(by_area):
        chosen[(sizes <= np.array(buckets[i])).all(axis=1)] = i
    return chosen


def _choose(limits: tuple[tuple[int, int], ...], uniform: np.ndarray) -> np.ndarray:
    """One of the limits for each number, int (n, 2)."""
    low = np.zeros(len(uniform), np.int64)
    return np.array(limits)[_integers(low, low + len(limits), uniform)]


def _integers(low: np.ndarray, high: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Integers from `low` to `high` - 1, of the same probability."""
    # Rounding may bring the product to `high` - `low` itself.
    return low + np.minimum((uniform * (high - low)).astype(np.int64), high - low - 1)
