"""Transforms on the host, from an encoded image to a uint8 image for the device.

Normalisation, mixing and erasing run on the device; see train/data/augmentation.py.
"""

import dataclasses
import io
import math
import re
import struct
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.images import orientation, read_image, to_array
from train.data.operations import VALUE_OPERATIONS
from train.data.randaugment import Operation, RandAugment

RESIZING = ("opencv", "bicubic", "bilinear")

# In the data of a scan, any marker except those that restart the decoder.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
# Second bytes of markers: SOF0 and SOF1, SOS, DQT and DHT.
_FRAMES, _SCAN, _TABLES = {0xC0, 0xC1}, 0xDA, {0xDB, 0xC4}
# Those of segments that are skipped (tables, DRI, APPn, COM), and their minimum lengths. Pillow
# fails on JFIF, ICC and Adobe segments (APP0, 2, 14) that are too short, and in several ways on
# those of Photoshop (APP13).
_MIN_LENGTH = {marker: 2 for marker in (*_TABLES, 0xDD, *range(0xE0, 0xF0), 0xFE)}
_MIN_LENGTH |= {0xE0: 16, 0xE2: 16, 0xED: math.inf, 0xEE: 14}
_LARGE = 2**26  # pixels; Pillow warns of larger images, and rejects the largest


class Draws(NamedTuple):
    """The random draws for a training image.

    Attributes:
      box: of the crop: left, top, right, bottom, in pixels.
      mirrored: whether the crop is flipped horizontally.
      operations: of the augmentation, in order.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    operations: list[Operation]


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """A random crop, resized, flipped with probability 1/2, and augmented.

    Attributes:
      size: side of the result in pixels.
      channels: 1 for grey, 3 for colour.
      scale, ratio: (smallest, largest) of the crop; see `random_box`.
      flip: whether to flip.
      resizing: one of `RESIZING`; see `resize`.
      rand_augment: the augmentation; None for colour jitter.
      color_jitter: its strength, 0 for none; see `ColorJitter`.
    """

    size: int
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    resizing: str
    rand_augment: RandAugment | None
    color_jitter: float

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Maps {"image": encoded bytes, "origin": str} to {"image": uint8 (S, S, C)}.

        Other fields, such as the label, are kept.

        Raises:
          ImageError: the bytes are no image, or an incomplete one.
        """
        # OpenCV's own threads would compete with those of the pipeline. This is set here because
        # all processes of the pipeline call this function.
        cv2.setNumThreads(0)
        image = self.decode(example)
        height, width, _ = image.shape
        draws = self.draw(width, height, rng)
        image = self.crop(image, draws.box)
        if draws.mirrored:
            image = self.mirror(image)
        image = self.augment(image, draws.operations)
        return with_pixels(example, image)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Draws:
        """The random draws for an image of this size."""
        box = random_box(width, height, self.scale, self.ratio, rng)
        mirrored = self.flip and rng.random() < 0.5
        return Draws(box, mirrored, self._augmentation.draw(rng))

    def decode(self, example: dict[str, Any]) -> np.ndarray:
        """The pixels of an example, uint8 (H, W, C)."""
        return decode(example["image"], self.channels, example["origin"])

    def crop(self, image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """The box of an image (H, W, C), resized to (S, S, C)."""
        left, top, right, bottom = box
        return resize(image[top:bottom, left:right], self.size, self.resizing)

    def mirror(self, image: np.ndarray) -> np.ndarray:
        """Flips horizontally."""
        return cv2.flip(image, 1, np.empty_like(image))

    def augment(self, image: np.ndarray, operations: list[Operation]) -> np.ndarray:
        """Applies the operations in order."""
        return self._augmentation.apply(image, operations)

    @property
    def _augmentation(self) -> "RandAugment | ColorJitter":
        return self.rand_augment or ColorJitter(self.color_jitter)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and colour in random order, as torchvision's `ColorJitter`.

    Attributes:
      strength: s; each factor is uniform in [max(0, 1 - s), 1 + s]. 0 for none.
    """

    strength: float

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draws the operations for an image."""
        if not self.strength:
            return []
        names = ["Brightness", "Contrast", "Color"]
        rng.shuffle(names)
        low, high = max(0, 1 - self.strength), 1 + self.strength
        return [(name, (rng.uniform(low, high),)) for name in names]

    def apply(self, image: np.ndarray, drawn: list[Operation]) -> np.ndarray:
        """Applies operations to an image, uint8 (H, W, C)."""
        for name, values in drawn:
            image = VALUE_OPERATIONS[name](image, *values)
        return image


@dataclasses.dataclass(frozen=True)
class Prepare:
    """The preprocessing of images for evaluation, without the normalisation.

    Attributes:
      preprocessing: size, crop and channels.
    """

    preprocessing: BasePreprocessing

    def map(self, example: dict[str, Any]) -> dict[str, Any]:
        """Maps {"image": encoded bytes, "origin": str} to {"image": uint8 (S, S, C)}.

        Other fields, such as the label, are kept.

        Raises:
          ImageError: the bytes are no image, or an incomplete one.
        """
        return with_pixels(example, self.preprocessing.pixels(example["image"], example["origin"]))


def with_pixels(example: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
    """The example with the decoded image, and without its origin."""
    rest = {name: value for name, value in example.items() if name != "origin"}
    return {**rest, "image": image}


def decode(data: bytes, channels: int, name: str, *, upright: bool = False) -> np.ndarray:
    """The pixels of an encoded image, uint8 (H, W, C), equal to those of `read_image`.

    OpenCV decodes plain JPEGs to the same pixels as Pillow, directly into an array, and in more
    threads at a time. Pillow decodes all other images, in particular those that may be damaged:
    OpenCV would return the readable part of them. Pillow also decodes those that are turned.

    Args:
      data: of the file.
      channels: 1 for grey, 3 for colour.
      name: what errors call it.
      upright: whether to apply the EXIF orientation.

    Raises:
      ImageError: the bytes are no image, or an incomplete one.
    """
    if channels == 3 and _is_plain_jpeg(data) and not (upright and _is_turned(data)):
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if image is not None:
            return image
    return to_array(read_image(data, channels, name, upright=upright))


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random crop of an image: left, top, right, bottom.

    The area relative to the image's is uniform in `scale`, the logarithm of the aspect ratio is
    uniform between those of `ratio`. If ten draws do not fit, it is the largest centre crop with an
    allowed ratio. Szegedy et al., arXiv:1409.4842, section 6.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            top = int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, round(height * aspect))
    h = min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resize(image: np.ndarray, size: int, resizing: str) -> np.ndarray:
    """Resizes uint8 (H, W, C) to (S, S, C).

    "bicubic" and "bilinear" are Pillow's, with antialiasing. "opencv" takes a fraction of their
    time. It is bicubic with the parameter -0.75 (Pillow's is -0.5). An axis that shrinks is first
    smoothed by a filter of three taps; one that shrinks to less than half is first reduced to twice
    the result's size, by averaging areas. Photographs become as sharp as by Pillow's bicubic, and
    differ from its results 0.6 times as much as those of its bilinear do.

    Args:
      image: of any size.
      size: S.
      resizing: one of `RESIZING`.
    """
    height, width, channels = image.shape
    if resizing == "opencv":
        w, h = min(width, 2 * size), min(height, 2 * size)
        if (w, h) != (width, height):
            result = _empty(w, h, channels)
            image = cv2.resize(image, (w, h), result, interpolation=cv2.INTER_AREA)
        if max(w, h) > size:
            taps = _antialiasing(width / size), _antialiasing(height / size)
            result = _empty(w, h, channels)
            image = cv2.sepFilter2D(image, -1, *taps, result, borderType=cv2.BORDER_REPLICATE)
        result = _empty(size, size, channels)
        return cv2.resize(image, (size, size), result, interpolation=cv2.INTER_CUBIC)
    picture = Image.fromarray(image if channels == 3 else image[:, :, 0])
    return to_array(picture.resize((size, size), Image.Resampling[resizing.upper()]))


def _empty(width: int, height: int, channels: int) -> np.ndarray:
    """An array for a result of OpenCV; see train/data/operations.py."""
    return np.empty((height, width, channels), np.uint8)


def _antialiasing(ratio: float) -> np.ndarray:
    """Three filter taps for an axis that shrinks by `ratio`.

    They are fitted so that photographs become as sharp as by Pillow's bicubic, measured by the mean
    square difference of neighbouring pixels. A fit to its pixels would be smoother, and so would
    differ from the images of evaluation.
    """
    if ratio <= 1:
        side = 0.0
    elif ratio <= 2:
        side = 0.02 + 0.18 * (ratio - 1)
    else:  # averaging areas has smoothed it already
        side = 0.15
    return np.array([side, 1 - 2 * side, side], np.float32)


def _is_turned(data: bytes) -> bool:
    """Whether a JPEG has an EXIF orientation other than upright; Pillow also finds it in XMP."""
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return False
    with Image.open(io.BytesIO(data)) as image:
        return orientation(image) != 1


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a complete grey or colour JPEG with one scan, and nothing else."""
    scan = _start_of_scan(data)
    if scan is None:
        return False
    marker = _MARKER.search(data, scan)
    return marker is not None and data[marker.start() :] == _END_OF_IMAGE


def _start_of_scan(data: bytes) -> int | None:
    """The position of the data of the first scan; None if the headers are unusual.

    Usual headers are known segments with quantisation and Huffman tables, one frame of 1 or 3
    channels of 8 bits, and a scan of all its channels. ITU-T T.81, annex B.
    """
    if not data.startswith(_START_OF_IMAGE):
        return None
    position, seen, channels = 2, set(), 0
    while len(data) >= position + 10:
        mark, marker, length = struct.unpack_from(">BBH", data, position)
        if mark != 0xFF or length < 2:
            return None
        if marker in _FRAMES and not channels:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            if bits != 8 or not 0 < height * width < _LARGE or channels not in (1, 3):
                return None
        elif marker == _SCAN:
            complete = seen >= _TABLES and data[position + 4] == channels
            return position + 2 + length if complete else None
        elif length < _MIN_LENGTH.get(marker, math.inf):
            return None
        seen.add(marker)
        position += 2 + length
    return None
