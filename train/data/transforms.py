"""From encoded bytes to the uint8 image that goes to the device.

Resizing is Pillow's antialiased bicubic, as in the paper's training and evaluation.
"""

import dataclasses
import io
import math
from typing import Any

import grain
import numpy as np
from PIL import Image, UnidentifiedImageError

from train.errors import RunError

_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True)
class RandomResizedCropAndFlip(grain.transforms.RandomMap):
    """A random part of the image, resized, and mirrored half of the time: for training.

    The part's area is drawn uniformly between `scale` of the image's, the logarithm of its
    aspect ratio uniformly between `ratio`; if ten draws do not fit, the largest centred part
    with an allowed ratio is taken. Szegedy et al., arXiv:1409.4842, section 6.

    Attributes:
      size: side of the result in pixels.
      channels: 1 for grey, 3 for colour.
      scale, ratio: (smallest, largest).
      flip: whether to mirror.
    """

    size: int
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Maps an example of a source to {"image": uint8 (S, S, C), "label": int32}."""
        image = decode(example, self.channels)
        image = _resize(image.crop(self._box(image.size, rng)), (self.size, self.size))
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"image": _array(image), "label": np.int32(example["label"])}

    def _box(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        width, height = size
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(0, width - w + 1))
                top = int(rng.integers(0, height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, round(height * ratio))
        h = min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class ResizeAndCentreCrop(grain.transforms.Map):
    """The paper's evaluation: the shorter side to size / crop_fraction, then the centre.

    Attributes:
      size: side of the result in pixels.
      channels: 1 for grey, 3 for colour.
      crop_fraction: 0.875 at 224; None warps the whole image to the square, as the paper does
        at 384 and above.
    """

    size: int
    channels: int
    crop_fraction: float | None

    def map(self, example: dict[str, Any]) -> dict[str, Any]:
        """Maps an example of a source to {"image": uint8 (S, S, C), "label": int32}.

        What else the example holds, but for its origin, passes unchanged.
        """
        image = decode(example, self.channels)
        if self.crop_fraction is None:
            image = _resize(image, (self.size, self.size))
        else:
            shorter = int(self.size / self.crop_fraction)
            # The longer side is cut, not rounded, as torchvision does.
            width, height = (shorter * side // min(image.size) for side in image.size)
            image = _resize(image, (width, height))
            left, top = round((width - self.size) / 2), round((height - self.size) / 2)
            image = image.crop((left, top, left + self.size, top + self.size))
        rest = {k: v for k, v in example.items() if k not in ("image", "label", "origin")}
        return {"image": _array(image), "label": np.int32(example["label"]), **rest}


def decode(example: dict[str, Any], channels: int) -> Image.Image:
    """The image of an example, converted to grey or colour.

    Raises:
      RunError: bytes that are no image, or not the whole of one.
    """
    try:
        image = Image.open(io.BytesIO(example["image"]))
        if image.mode.startswith("I;16"):  # convert() would cut at 255, not scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise OSError(f"its values have no known range (mode {image.mode})")
        return image.convert(_MODES[channels])
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunError(
            f"Cannot read the image {example['origin']}: {error}. Mend it or take it away."
        ) from error


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array
