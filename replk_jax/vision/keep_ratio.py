"""The preprocessing of segmentation and detection: resizing that keeps the aspect ratio."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from replk_jax.io.text import escaped
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD, BasePreprocessing
from replk_jax.vision.images import ImageError, ImageLike, image_name, read_image, to_array
from replk_jax.vision.opencv_bilinear import resize_bilinear
from replk_jax.vision.preprocessing_fields import (
    LARGEST_SIDE,
    MEAN,
    SIDE,
    STD,
    Rule,
    check_fields,
    side,
)


def size_within(height: int, width: int, limits: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the aspect ratio of an image that keeps two limits.

    The factor is computed in double precision; sides are rounded half up and at least 1, as by
    `mmcv.imrescale`.

    Args:
      height, width: of the image in pixels.
      limits: (long, short), of the longer and the shorter side in pixels.

    Returns:
      (height, width).
    """
    rows, columns = sizes_within(np.array((height, width)), np.array(limits)).tolist()
    return rows, columns


def sizes_within(sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`size_within` for many images.

    Args:
      sizes: int (..., 2), height and width.
      limits: int (..., 2), of the longer and of the shorter side.

    Returns:
      int64 (..., 2), height and width.
    """
    longer, shorter = sizes.max(axis=-1), sizes.min(axis=-1)
    scale = np.minimum(limits[..., 0] / longer, limits[..., 1] / shorter)
    return np.maximum(1, (sizes * scale[..., None] + 0.5).astype(np.int64))


def ratio_limits(limits: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Both limits times a ratio, cut to whole pixels."""
    long, short = limits
    return int(long * ratio), int(short * ratio)


@dataclasses.dataclass(frozen=True)
class KeepRatio(BasePreprocessing):
    """Resizing to two limits that keeps the aspect ratio, and normalisation.

    The pixels equal those of OpenCV's bilinear resizing to the byte, and the sizes those of
    mmsegmentation's and mmdetection's `Resize` with `keep_ratio=True`. Images are read upright, as
    by these: their EXIF orientation is applied.

    Attributes:
      limits: (long, short), of the longer and the shorter side in pixels.
      multiple: both sides are then rounded up to multiples of it by resizing the image again, which
        changes the aspect ratio a little (`ResizeToMultiple` of mmsegmentation, in UniRepLKNet's
        test); 1 for no rounding.
      mean, std: for values in [0, 1], one for each channel: 3, or 1 for grey images.

    Raises:
      ValueError: a field that makes no sense.
    """

    kind: ClassVar[str] = "keep_ratio"

    limits: tuple[int, int] = (2048, 512)
    multiple: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        check_fields(self, _FIELDS)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The reverse of `fields`.

        Raises:
          ValueError: fields that are missing or unknown, or that make no sense.
        """
        known = sorted(field.name for field in dataclasses.fields(cls))
        if sorted(map(str, fields)) != known:
            given = sorted(map(str, fields))
            raise ValueError(f"The preprocessing {cls.kind!r} has the fields {known}; got {given}.")
        return cls(**fields)

    def fields(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @property
    def size(self) -> None:
        """None: images differ in size."""
        return None

    def resized_size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """The (height, width) that an image of a size is resized to.

        Args:
          height, width: of the image in pixels.
          ratio: a factor on both limits, as in tests at several scales.
        """
        size = size_within(height, width, ratio_limits(self.limits, ratio))
        rows, columns = (-(-side // self.multiple) * self.multiple for side in size)
        return rows, columns

    def pixels(self, image: ImageLike, name: str | None = None) -> np.ndarray:
        """The prepared image before normalisation, uint8 (H, W, C); see `resized_pixels`."""
        return self.resized_pixels(image, name)

    def resized_pixels(
        self, image: ImageLike, name: str | None = None, ratio: float = 1.0
    ) -> np.ndarray:
        """The image at `resized_size`, before normalisation.

        Args:
          image: as `read_image` takes it.
          name: what errors call it.
          ratio: a factor on both limits.

        Returns:
          uint8 (H, W, C).

        Raises:
          ImageError: an image that cannot be read, or is far too long.
        """
        source = read_image(image, self.channels, name, upright=True)
        height, width = self.resized_size(source.height, source.width, ratio)
        if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
            raise ImageError(
                f"Cannot resize the image {escaped(name or image_name(image))}, {source.width} x "
                f"{source.height} pixels: it would come to {width} x {height}. Crop it first."
            )
        limits = ratio_limits(self.limits, ratio)
        resized = resize_bilinear(
            to_array(source), size_within(source.height, source.width, limits)
        )
        return resize_bilinear(resized, (height, width))


def _limits(value: Any) -> tuple[int, int]:
    long, short = map(side, value)
    if long < short:
        raise ValueError
    return long, short


_FIELDS: dict[str, Rule] = {
    "limits": (
        _limits,
        f"two whole numbers from 1 to {LARGEST_SIDE}, the limit of the longer side first",
    ),
    "multiple": SIDE,
    "mean": MEAN,
    "std": STD,
}
