"""A reference implementation of `TrainTransform` with Pillow, composed as in timm.

Tests compare with it, and train/bench_data.py measures it. Its random draws are those of
`TrainTransform`.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from replk_jax.vision.images import to_array
from train.data.randaugment import Operation
from train.data.transforms import Draws, TrainTransform, with_pixels


@dataclasses.dataclass(frozen=True)
class PillowTransform:
    """`TrainTransform` with each step by Pillow.

    Attributes:
      recipe: the transform; its `resizing` is "bicubic" or "bilinear".
    """

    recipe: TrainTransform

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """See `TrainTransform`."""
        image = self.decode(example)
        draws = self.draw(*image.size, rng)
        image = self.crop(image, draws.box)
        if draws.mirrored:
            image = self.mirror(image)
        image = self.augment(image, draws.operations)
        return with_pixels(example, to_array(image))

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Draws:
        """See `TrainTransform`."""
        return self.recipe.draw(width, height, rng)

    def decode(self, example: dict[str, Any]) -> Image.Image:
        """See `TrainTransform`; images here are Pillow's."""
        mode = {1: "L", 3: "RGB"}[self.recipe.channels]
        return Image.open(io.BytesIO(example["image"])).convert(mode)

    def crop(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """See `TrainTransform`."""
        return image.crop(box).resize((self.recipe.size, self.recipe.size), self._resample)

    def mirror(self, image: Image.Image) -> Image.Image:
        """See `TrainTransform`."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def augment(self, image: Image.Image, operations: list[Operation]) -> Image.Image:
        """See `TrainTransform`."""
        fill = self.recipe.rand_augment.fill if self.recipe.rand_augment else ()
        for operation in operations:
            image = apply(image, operation, fill, self._resample)
        return image

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling[self.recipe.resizing.upper()]


def apply(
    image: Image.Image, operation: Operation, fill: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    """Applies an operation; see `train.data.randaugment.arguments`."""
    name, values = operation
    if name in _VALUE_OPERATIONS:
        return _VALUE_OPERATIONS[name](image, *values)
    (value,) = values
    color = fill if image.mode == "RGB" else fill[0]
    if name == "Rotate":
        return image.rotate(value, resample, fillcolor=color)
    matrix = _MATRICES[name](value, *image.size)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=color)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # Pillow keeps at least one bit.
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _solarize_add(image: Image.Image, addition: int) -> Image.Image:
    table = [min(255, value + addition) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


_VALUE_OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Posterize": _posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
_MATRICES: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "ShearX": lambda slope, width, height: (1, slope, 0, 0, 1, 0),
    "ShearY": lambda slope, width, height: (1, 0, 0, slope, 1, 0),
    "TranslateXRel": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYRel": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}
