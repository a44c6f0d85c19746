"""From encoded bytes to the uint8 image that goes to the device.

Resizing is Pillow's antialiased bicubic, as in the paper's training and evaluation.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from PIL import Image

from replk_jax.images import ImageError, read_image, to_array
from replk_jax.preprocessing import Preprocessing
from train.errors import RunError


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
        """Maps an example of a source to {"image": uint8 (S, S, C), "label": int32}.

        Raises:
          RunError: bytes that are no image, or not the whole of one.
        """
        with _reported():
            image = read_image(example["image"], self.channels, example["origin"])
        box = self._box(image.size, rng)
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"image": to_array(image), "label": np.int32(example["label"])}

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
class Prepare(grain.transforms.Map):
    """What a checkpoint's images go through before evaluation, but for the normalisation.

    Attributes:
      preprocessing: size, crop and channels.
    """

    preprocessing: Preprocessing

    def map(self, example: dict[str, Any]) -> dict[str, Any]:
        """Maps an example of a source to {"image": uint8 (S, S, C), "label": int32}.

        What else the example holds, but for its origin, passes unchanged.

        Raises:
          RunError: bytes that are no image, or not the whole of one.
        """
        with _reported():
            image = self.preprocessing.pixels(example["image"], example["origin"])
        rest = {k: v for k, v in example.items() if k not in ("image", "label", "origin")}
        return {"image": image, "label": np.int32(example["label"]), **rest}


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """An image that cannot be read ends the run."""
    try:
        yield
    except ImageError as error:
        raise RunError(f"{error} Mend it or take it away.") from error
