"""The training transform written plainly with Pillow, as timm composes it.

What `TrainTransform` is tested against, and measured against in train/bench_data.py. It draws
what that draws, so both show the same view of an image.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from replk_jax.vision.images import to_array
from train.data.randaugment import Operation
from train.data.transforms import TrainTransform, with_pixels


class PillowTransform(TrainTransform):
    """`TrainTransform` with each step by Pillow; `resizing` is "bicubic" or "bilinear"."""

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """As `TrainTransform`."""
        image = self.decode(example)
        draws = self.draw(*image.size, rng)
        image = self.crop(image, draws.box)
        if draws.mirrored:
            image = self.mirror(image)
        image = self.augment(image, draws.operations)
        return with_pixels(example, to_array(image))

    def decode(self, example: dict[str, Any]) -> Image.Image:
        """As `TrainTransform`, but with an image of Pillow; as are the next three."""
        mode = {1: "L", 3: "RGB"}[self.channels]
        return Image.open(io.BytesIO(example["image"])).convert(mode)

    def crop(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        return image.crop(box).resize((self.size, self.size), self._resample)

    def mirror(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def augment(self, image: Image.Image, operations: list[Operation]) -> Image.Image:
        fill = self.rand_augment.fill if self.rand_augment else ()
        for operation in operations:
            image = apply(image, operation, fill, self._resample)
        return image

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling[self.resizing.upper()]


def apply(
    image: Image.Image, operation: Operation, fill: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    """One operation; see `train.data.randaugment.arguments`."""
    name, values = operation
    if name in _VALUE_OPERATIONS:
        return _VALUE_OPERATIONS[name](image, *values)
    color = fill if image.mode == "RGB" else fill[0]
    if name == "Rotate":
        return image.rotate(*values, resample, fillcolor=color)
    matrix = _MATRICES[name](*values, *image.size)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=color)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # Pillow keeps at least one.
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
