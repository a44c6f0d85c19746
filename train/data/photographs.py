"""Patches of photographs as a TensorFlow Datasets builder that needs no network.

The photographs are those that scikit-image (van der Walt et al., PeerJ 2:e453, 2014) and
scikit-learn carry; the class of a patch is the photograph that it was cut from.
"""

import importlib.resources
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds
from PIL import Image

from train.errors import RunError

# The files by package and folder. Grey ones become RGB.
_FILES = {
    ("skimage", "data"): (
        "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png "
        "coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png "
        "motorcycle_left.png retina.jpg rocket.jpg"
    ),
    ("sklearn", "datasets/images"): "china.jpg flower.jpg",
}
# The package, folder and file of each class.
PHOTOGRAPHS = {
    file.partition(".")[0]: (*place, file)
    for place, files in _FILES.items()
    for file in files.split()
}
SIDE = 64  # of a patch, in pixels
COUNTS = {"train": 240, "test": 60}  # of the patches of each photograph

# A photograph is divided into periods of columns: 96 for training, 8 unused, 64 for testing, 8
# unused. Below are the first and the last left edge of the patches of a split, within a period.
_PERIOD = 176
_LEFT_EDGES = {"train": (0, 32), "test": (104, 104)}
# A quasi-random sequence: the first n multiples of these, modulo 1, are spread evenly over a
# square, for any n. They are the inverse of the real root of x^3 = x + 1, and its square.
_STEPS = (0.7548776662466927, 0.5698402909980532)


class Patch(NamedTuple):
    """The square of `SIDE` pixels whose upper left corner is column `left`, row `top`."""

    photograph: str
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + SIDE, self.top + SIDE


def open_photograph(name: str) -> Image.Image:
    """The photograph of that name, in RGB.

    Raises:
      RunError: the package that carries it is not installed.
    """
    package, folder, file = PHOTOGRAPHS[name]
    try:
        path = importlib.resources.files(package) / folder / file
    except ModuleNotFoundError as error:
        raise RunError(
            "The photographs are those of scikit-image and scikit-learn: "
            "python -m pip install scikit-image scikit-learn"
        ) from error
    with path.open("rb") as opened, Image.open(opened) as image:
        return image.convert("RGB")


def patches(name: str, size: tuple[int, int], split: str) -> Iterator[Patch]:
    """The patches of a photograph in a split, spread evenly over the columns of the split.

    Args:
      name: of the photograph.
      size: its width and height.
      split: "train" or "test", which share no pixel.
    """
    width, height = size
    first, last = _LEFT_EDGES[split]
    lefts = [left for left in range(width - SIDE + 1) if first <= left % _PERIOD <= last]
    tops = range(height - SIDE + 1)
    for i in range(COUNTS[split]):
        across, down = ((i * step) % 1 for step in _STEPS)
        yield Patch(name, lefts[int(across * len(lefts))], tops[int(down * len(tops))])


class Photographs(tfds.core.GeneratorBasedBuilder):
    """64x64 patches of 18 photographs: 4,320 to train on and 1,080 to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(PHOTOGRAPHS)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str):
        for name in PHOTOGRAPHS:
            photograph = open_photograph(name)
            for i, patch in enumerate(patches(name, photograph.size, split)):
                # A PIL image, since TFDS would use TensorFlow to encode an array.
                yield f"{name}_{i}", {"image": photograph.crop(patch.box), "label": name}
