"""Handwritten digits on photographs, with exact masks, as a TensorFlow Datasets builder.

It needs no network. Every image shows a few digits of scikit-learn (see `train.data.digits`),
enlarged smoothly, at random places, in random sizes and colours, on a patch of a photograph that
scikit-image or scikit-learn carries (see `train.data.photographs`). Later digits cover earlier
ones. All of it follows from the number of the image, so the set is the same wherever it is made;
only the pixels of JPEG photographs may differ by one between decoders.

An example has

- `image`: PNG, RGB, of one of the sizes in `SIZES`.
- `segmentation`: PNG, grey, the class of each pixel, an index in `CLASS_NAMES`; none is ignored.
- `instances`: PNG, grey, 0 for background and i + 1 where object i is visible.
- `objects`: the digits, in the order in which they are drawn: `bbox`, the smallest box around the
  visible pixels, as fractions (top, left, bottom, right) of height and width; `label`, the digit,
  so that `label` + 1 is its class in `segmentation`; `area`, the number of visible pixels.

**Writers.** The description of the UCI set says that its test set, which scikit-learn carries, was
written by 13 people, none of whom wrote the training set. Who wrote which digit is not recorded.
But the digits are in the order of the forms that they were cut from: the same text of about 130
digits, starting with three times 0 to 9, occurs 14 times. The first 11 forms are for training, the
last 3 for testing. If each form has one writer, at most one writer, who filled in two forms, can be
in both splits.

**Photographs.** Those of the two splits are different photographs.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from train.data.photographs import PHOTOGRAPHS, open_photograph

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASS_NAMES = ("background", *DIGIT_NAMES)
COUNTS = {"train": 1500, "test": 300}
SIZES = ((96, 96), (96, 128), (128, 96))  # (height, width); the images take turns

# Positions in scikit-learn's set. The last three forms begin at 1415, 1545 and 1667.
DIGITS = {"train": range(0, 1415), "test": range(1415, 1797)}
_TEST_PHOTOGRAPHS = ("chelsea", "china", "coins", "gravel", "rocket")
BACKGROUNDS = {
    "train": tuple(name for name in PHOTOGRAPHS if name not in _TEST_PHOTOGRAPHS),
    "test": _TEST_PHOTOGRAPHS,
}
_MOST_REDUCED = 2.5  # a patch of a photograph is at most this factor larger than the image

_DIGITS_PER_IMAGE = (2, 6)  # fewer where there is no room
_HEIGHTS = (32, 60)  # of the 8 cells of a digit, in pixels
_ASPECTS = (0.75, 1.1)  # width of a cell by its height
_INK = 128  # of 255: a pixel with more belongs to the digit
# A digit needs this share of its pixels visible, whatever covers it.
LEAST_VISIBLE = 0.75
_TRIES = 20

_DIMMED = 0.55  # factor on the photographs, so that every digit can be lighter
_CONTRAST = (80, 140)  # a digit's luminance above its surroundings, of 255
_SATURATION = (0, 90)  # largest difference of a channel to the luminance
_LUMINANCE = np.array((0.299, 0.587, 0.114))


class Glyph(NamedTuple):
    """An enlarged digit.

    Attributes:
      position: of the digit in scikit-learn's set.
      label: the digit.
      ink: uint8 (h, w), 0 to 255, with a margin of one pixel around the pixels of the digit.
      mask: bool (h, w), the pixels of the digit.
      edge: float64 (h, w), the opacity, from 0 to 1: at least 0.5 where `mask` is set, below 0.5
        elsewhere.
    """

    position: int
    label: int
    ink: np.ndarray
    mask: np.ndarray
    edge: np.ndarray


class Placed(NamedTuple):
    """A glyph and the position of its upper left corner in the image."""

    glyph: Glyph
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image that the glyph takes."""
        height, width = self.glyph.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Scene(NamedTuple):
    """An image of the set.

    Attributes:
      image: uint8 (H, W, 3).
      segmentation: uint8 (H, W), classes.
      instances: uint8 (H, W), 0 or the number of the digit in `digits`, from 1.
      digits: in drawing order.
      background: name of the photograph.
    """

    image: np.ndarray
    segmentation: np.ndarray
    instances: np.ndarray
    digits: list[Placed]
    background: str


def make_scene(split: str, number: int) -> Scene:
    """The image of that number in a split.

    Args:
      split: "train" or "test".
      number: from 0.

    Raises:
      RunError: scikit-image is not installed.
    """
    size = SIZES[number % len(SIZES)]
    rng = np.random.default_rng((list(COUNTS).index(split), number))
    digits, instances = _scatter(split, size, rng)
    name = BACKGROUNDS[split][rng.integers(len(BACKGROUNDS[split]))]
    pixels = _DIMMED * _patch(name, size, rng)
    for placed in digits:
        part = pixels[placed.window]
        ink = _ink_colour(part, rng)
        part += placed.glyph.edge[:, :, None] * (ink - part)
    classes = np.array([0, *(placed.glyph.label + 1 for placed in digits)], np.uint8)
    image = np.rint(pixels).astype(np.uint8)
    return Scene(image, classes[instances], instances, digits, name)


def make_glyph(position: int, height: float, aspect: float) -> Glyph:
    """A digit of scikit-learn's set, enlarged by bicubic interpolation.

    Args:
      position: in that set, from 0 to 1796.
      height: of its 8 cells, in pixels.
      aspect: width of a cell divided by its height.
    """
    cells, labels = _digits()
    # Pillow resizes uint8 in whole numbers: the result is the same on every machine.
    margin = np.pad(cells[position], 1)
    side = len(margin) / 8
    size = round(height * aspect * side), round(height * side)
    ink = np.asarray(Image.fromarray(margin).resize(size, Image.Resampling.BICUBIC))
    rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
    ink = np.pad(ink, 1)[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
    # An edge as soft as the cells are large would not look drawn: it becomes about a pixel wide.
    steepness = height / 8 / 255
    edge = np.clip(0.5 + (ink - (_INK + 0.5)) * steepness, 0, 1)
    return Glyph(position, int(labels[position]), ink, ink > _INK, edge)


class ScatteredDigits(tfds.core.GeneratorBasedBuilder):
    """Digits on photographs, with masks and boxes: 1,500 images to train on and 300 to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        png: Any = {"shape": (None, None, 1), "dtype": np.uint8, "encoding_format": "png"}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "segmentation": tfds.features.LabeledImage(labels=list(CLASS_NAMES), **png),
                    "instances": tfds.features.Image(**png),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=list(DIGIT_NAMES)),
                            "area": np.int32,
                        }
                    ),
                }
            ),
            supervised_keys=("image", "segmentation"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str):
        for number in range(COUNTS[split]):
            scene = make_scene(split, number)
            # PIL images, since TFDS would use TensorFlow to encode arrays.
            yield (
                number,
                {
                    "image": Image.fromarray(scene.image),
                    "segmentation": Image.fromarray(scene.segmentation),
                    "instances": Image.fromarray(scene.instances),
                    "objects": list(_objects(scene)),
                },
            )


def _scatter(
    split: str, size: tuple[int, int], rng: np.random.Generator
) -> tuple[list[Placed], np.ndarray]:
    """Digits at random places, and their visible pixels: `Scene.instances`."""
    _, labels = _digits()
    of_split = labels[DIGITS[split].start : DIGITS[split].stop]
    instances = np.zeros(size, np.uint8)
    digits: list[Placed] = []
    for _ in range(rng.integers(_DIGITS_PER_IMAGE[0], _DIGITS_PER_IMAGE[1], endpoint=True)):
        # The classes are equally frequent; in the set, they are almost.
        found = np.flatnonzero(of_split == rng.integers(10))
        position = DIGITS[split][rng.choice(found)]
        height = np.exp(rng.uniform(*np.log(_HEIGHTS)))
        glyph = make_glyph(position, height, rng.uniform(*_ASPECTS))
        room = np.subtract(size, glyph.mask.shape)
        for _ in range(_TRIES):
            placed = Placed(glyph, *rng.integers(0, room, endpoint=True).tolist())
            drawn = instances.copy()
            drawn[placed.window][glyph.mask] = len(digits) + 1
            if _all_visible(drawn, digits):
                instances = drawn
                digits.append(placed)
                break
    return digits, instances


def _all_visible(instances: np.ndarray, digits: Sequence[Placed]) -> bool:
    areas = np.bincount(instances.reshape(-1), minlength=len(digits) + 1)[1:]
    return all(
        area >= LEAST_VISIBLE * np.count_nonzero(placed.glyph.mask)
        for area, placed in zip(areas, digits, strict=False)
    )


def _patch(name: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, flipped or not, uint8 (H, W, 3)."""
    photograph = _photograph(name)
    height, width = size
    largest = min(photograph.width / width, photograph.height / height, _MOST_REDUCED)
    factor = rng.uniform(1, largest)
    across, down = int(width * factor), int(height * factor)
    left = int(rng.integers(0, photograph.width - across, endpoint=True))
    top = int(rng.integers(0, photograph.height - down, endpoint=True))
    box = (left, top, left + across, top + down)
    patch = np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC, box))
    return patch[:, ::-1] if rng.integers(2) else patch


def _ink_colour(surroundings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour, float64 (3,), lighter than what is drawn on.

    The draws do not depend on the surroundings.

    Args:
      surroundings: the pixels below the digit, (h, w, 3).
      rng: of the image.
    """
    contrast, saturation = rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION)
    hue = rng.uniform(-1, 1, 3)
    below = float(surroundings.mean(axis=(0, 1)) @ _LUMINANCE)
    tint = hue - hue @ _LUMINANCE
    return np.clip(below + contrast + saturation * tint / np.abs(tint).max(), 0, 255)


def _objects(scene: Scene) -> Iterator[dict[str, Any]]:
    height, width = scene.instances.shape
    for i, placed in enumerate(scene.digits):
        visible = scene.instances == i + 1
        rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
        box = tfds.features.BBox(
            ymin=rows[0] / height,
            xmin=columns[0] / width,
            ymax=(rows[-1] + 1) / height,
            xmax=(columns[-1] + 1) / width,
        )
        area = np.count_nonzero(visible)
        yield {"bbox": box, "label": placed.glyph.label, "area": area}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits, uint8 (1797, 8, 8), and their labels (1797,)."""
    data: Any = load_digits()  # a tuple with other arguments
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target  # stored as 0 to 16


@functools.cache
def _photograph(name: str) -> Image.Image:
    return open_photograph(name)
