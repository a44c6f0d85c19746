"""How segmentation networks are tested: sizes of images, windows, scales and flips."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from replk_jax.segmentation.prediction import Size, Windows, place_windows
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD
from replk_jax.vision.images import ImageLike
from replk_jax.vision.keep_ratio import KeepRatio
from replk_jax.vision.preprocessing_fields import (
    SIDE,
    Rule,
    check_fields,
    finite_numbers,
    side,
)


@dataclasses.dataclass(frozen=True)
class SegmentationProtocol(KeepRatio):
    """The test protocol of a segmentation network, stored with it as its preprocessing.

        SegmentationProtocol((2048, 512))  # ADE20K, the whole image at a single scale
        SegmentationProtocol((2048, 1024), window=1024, stride=683, flip=True)

    An image is resized, and the network sees the whole of it or windows, whose logits are averaged
    where they overlap. Several views (scales, and with `flip` each also mirrored) give the mean of
    their softmaxes. It is mmsegmentation's test (`test_cfg`, `MultiScaleFlipAug`).

    Attributes:
      window: side of the square windows; None for the whole image. A side of an image that is
        shorter is used as it is.
      stride: distance of neighbouring windows, at most `window`; None without windows.
      ratios: of the scales: factors on both limits, whose products are cut to whole pixels.
      flip: whether the mirrored image of each scale is another view.
      limits, multiple, mean, std: see `KeepRatio`.

    Raises:
      ValueError: a field that makes no sense.
    """

    kind: ClassVar[str] = "segmentation"

    window: int | None = None
    stride: int | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, _FIELDS)
        if (self.window is None) != (self.stride is None):
            raise ValueError(
                "window and stride of a preprocessing are given together, or neither; got "
                f"window={self.window} and stride={self.stride}."
            )
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride must be at most the window of {self.window}, or pixels between windows "
                f"would have no class; got {self.stride}."
            )
        if min(self.limits) * min(self.ratios) < 1:
            raise ValueError(
                f"The limits {self.limits} times the ratio {min(self.ratios):g} are no pixel."
            )

    @property
    def views(self) -> tuple[tuple[float, bool], ...]:
        """The ratio of each view, and whether it is mirrored; a ratio's views are neighbours."""
        flips = (False, True) if self.flip else (False,)
        return tuple((ratio, flipped) for ratio in self.ratios for flipped in flips)

    def windows(self, image_size: Size) -> Windows:
        """The windows of a resized image of some (height, width)."""
        return place_windows(image_size, self.window, self.stride or 0)

    def scales(self, image: ImageLike, name: str | None = None) -> tuple[np.ndarray, ...]:
        """The image resized for each ratio, before normalisation.

        Args:
          image: as `read_image` takes it; it is decoded for each ratio, unless it is an image of
            Pillow or an array.
          name: what errors call it.

        Returns:
          uint8 (H, W, C), one for each of `ratios`.

        Raises:
          ImageError: an image that cannot be read, or is far too long.
        """
        return tuple(self.resized_pixels(image, name, ratio) for ratio in self.ratios)

    def in_words(self) -> str:
        """Such as "resize to at most 2048 x 512, slide 640 stride 426, single scale"."""
        parts = [f"resize to at most {self.limits[0]} x {self.limits[1]}"]
        if self.multiple > 1:
            parts.append(f"multiples of {self.multiple}")
        whole = self.window is None
        parts.append("whole" if whole else f"slide {self.window} stride {self.stride}")
        ratios = " ".join(f"{ratio:g}" for ratio in self.ratios)
        parts.append("single scale" if self.ratios == (1,) else f"scales {ratios}")
        if self.flip:
            parts.append("flip")
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            parts.append(f"mean {self.mean}, std {self.std}")
        return ", ".join(parts)


def _optional_side(value: Any) -> int | None:
    return None if value is None else side(value)


def _ratios(value: Any) -> tuple[float, ...]:
    ratios = finite_numbers(value)
    if not ratios or not all(0 < ratio <= 16 for ratio in ratios):
        raise ValueError
    return ratios


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_FIELDS: dict[str, Rule] = {
    "window": (_optional_side, f"{SIDE[1]}, or None"),
    "stride": (_optional_side, f"{SIDE[1]}, or None"),
    "ratios": (_ratios, "one or more numbers above 0 and at most 16"),
    "flip": (_flag, "True or False"),
}
