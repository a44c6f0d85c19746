"""The preprocessing of classification: a square, cropped or warped."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from replk_jax.io.text import escaped
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD, BasePreprocessing
from replk_jax.vision.images import ImageError, ImageLike, image_name, read_image, to_array
from replk_jax.vision.preprocessing_fields import (
    MEAN,
    SIDE,
    STD,
    Rule,
    check_fields,
    finite_numbers,
)


@dataclasses.dataclass(frozen=True)
class Preprocessing(BasePreprocessing):
    """Resizing, cropping and normalisation of the images that a network is evaluated on.

        preprocessing = Preprocessing(image_size=224)
        images = np.stack([preprocessing(path) for path in paths])  # float32 (N, 224, 224, 3)

    The pixels equal those of Pillow's antialiased resizing to the bit, with sizes and offsets
    rounded as torchvision's `Resize` and `CenterCrop` do: that is how the authors evaluate
    (DingXiaoH/RepLKNet-pytorch, datasets.py).

    Attributes:
      image_size: side S of the square that the network sees, in pixels.
      crop_fraction: S over the shorter side of the resized image, whose centre is cropped;
        at most 1. None warps the whole image to the square.
      interpolation: a filter of Pillow, such as "bicubic" or "bilinear".
      mean, std: for values in [0, 1], one for each channel: 3, or 1 for grey images.

    Raises:
      ValueError: a field that makes no sense.
    """

    kind: ClassVar[str] = "square"

    image_size: int = 224
    crop_fraction: float | None = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        check_fields(self, _FIELDS)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The reverse of `fields`.

        Raises:
          ValueError: fields that are missing or unknown, or that make no sense.
        """
        if set(fields) != set(_FIELDS):
            given = sorted(map(str, fields))
            raise ValueError(f"A preprocessing has the fields {sorted(_FIELDS)}; got {given}.")
        return cls(**fields)

    def fields(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    def as_dict(self) -> dict[str, Any]:
        """The fields alone, which version 0.1.0 reads too."""
        return self.fields()

    @property
    def size(self) -> tuple[int, int]:
        """(S, S)."""
        return self.image_size, self.image_size

    def resized(self, size: int) -> "Preprocessing":
        """This preprocessing with another `image_size`."""
        return dataclasses.replace(self, image_size=size)

    def in_words(self) -> str:
        """See `BasePreprocessing`."""
        size, crop = self.image_size, self.crop_fraction
        cut = "warped" if crop is None else f"the centre of {int(size / crop)}"
        return f"{size} x {size}, {cut}, {self.interpolation}, mean {self.mean}, std {self.std}"

    def pixels(self, image: ImageLike, name: str | None = None) -> np.ndarray:
        """The prepared image before normalisation, uint8 (S, S, C).

        Args:
          image: as `read_image` takes it.
          name: what errors call it.

        Raises:
          ImageError: an image that cannot be read, or is far too long.
        """
        whole = read_image(image, self.channels, name)
        width, height = self._resized_size(whole)
        if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise ImageError(
                f"Cannot resize the image {escaped(name or image_name(image))}, {whole.width} x "
                f"{whole.height} pixels: it would come to {width} x {height}. Crop it first."
            )
        resized = whole.resize((width, height), Image.Resampling[self.interpolation.upper()])
        size = self.image_size
        left, top = round((width - size) / 2), round((height - size) / 2)
        return to_array(resized.crop((left, top, left + size, top + size)))

    def _resized_size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height that an image is resized to, before the crop."""
        if self.crop_fraction is None:
            return self.image_size, self.image_size
        shorter = int(self.image_size / self.crop_fraction)
        # The longer side is cut to whole pixels, not rounded.
        width, height = (shorter * side // min(image.size) for side in image.size)
        return width, height


def _crop_fraction(value: Any) -> float | None:
    if value is None:
        return None
    (fraction,) = finite_numbers([value])
    if not 0 < fraction <= 1:
        raise ValueError
    return fraction


def _interpolation(value: Any) -> str:
    if value not in _INTERPOLATIONS:
        raise ValueError
    return value


_INTERPOLATIONS = [filter.name.lower() for filter in Image.Resampling]

_FIELDS: dict[str, Rule] = {
    "image_size": SIDE,
    "crop_fraction": (_crop_fraction, "more than 0 and at most 1, or None"),
    "interpolation": (_interpolation, f"one of {', '.join(_INTERPOLATIONS)}"),
    "mean": MEAN,
    "std": STD,
}
