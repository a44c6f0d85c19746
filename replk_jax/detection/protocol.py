"""How images are prepared for detectors: resized, and padded at the right and at the bottom."""

import dataclasses
from typing import ClassVar

import numpy as np

from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD
from replk_jax.vision.keep_ratio import KeepRatio
from replk_jax.vision.preprocessing_fields import SIDE, Rule, check_fields


@dataclasses.dataclass(frozen=True)
class DetectionProtocol(KeepRatio):
    """The preprocessing of a detector, stored with it.

        DetectionProtocol()  # COCO: (1333, 800), multiples of 32
        DetectionProtocol((640, 640), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    An image is resized within two limits, normalised, and then padded with 0, the mean colour. It
    is mmdetection's test (`Resize` with `keep_ratio=True`, `Normalize`, `Pad`).

    Attributes:
      limits, multiple, mean, std: see `KeepRatio`. `multiple` resizes again, and is 1 as a rule.
      pad_multiple: sides are padded to multiples of it.

    Raises:
      ValueError: a field that makes no sense.
    """

    kind: ClassVar[str] = "detection"

    limits: tuple[int, int] = (1333, 800)
    pad_multiple: int = 32

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, _FIELDS)

    def scale_factors(self, height: int, width: int) -> np.ndarray:
        """The new side over the old one in both directions.

        The two differ a little, since sides are rounded. Boxes of the resized image divided by them
        are boxes of the image.

        Args:
          height, width: of the image in pixels.

        Returns:
          float32 (2,), vertical and horizontal.
        """
        new = np.array(self.resized_size(height, width), np.float64)
        return (new / (height, width)).astype(np.float32)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a resized and padded image.

        Args:
          height, width: of the image in pixels, before it is resized.
        """
        rows, columns = (
            _rounded_up(side, self.pad_multiple) for side in self.resized_size(height, width)
        )
        return rows, columns

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of two shapes that hold all wide and all high images, once resized.

        It is one shape if the limits are equal.
        """
        long, short = (_rounded_up(limit, self.multiple) for limit in self.limits)
        return wide_and_high(long, short, self.pad_multiple)

    def in_words(self) -> str:
        """Such as "resize to at most 1333 x 800, pad to multiples of 32"."""
        parts = [f"resize to at most {self.limits[0]} x {self.limits[1]}"]
        if self.multiple > 1:
            parts.append(f"resize to multiples of {self.multiple}")
        if self.pad_multiple > 1:
            parts.append(f"pad to multiples of {self.pad_multiple}")
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            parts.append(f"mean {self.mean}, std {self.std}")
        return ", ".join(parts)


def wide_and_high(long: int, short: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The (height, width) of two shapes that hold all wide and all high images within limits.

    Args:
      long, short: limits of the longer and the shorter side.
      multiple: to which the sides of the shapes are rounded up.

    Returns:
      The shape of wide images and that of high ones, or one square if the sides are equal.
    """
    long, short = _rounded_up(long, multiple), _rounded_up(short, multiple)
    return ((short, long), (long, short)) if short < long else ((long, long),)


def _rounded_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


_FIELDS: dict[str, Rule] = {"pad_multiple": SIDE}
