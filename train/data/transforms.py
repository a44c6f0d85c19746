"""From encoded bytes to the uint8 image that goes to the device.

What works on floats (normalisation, mixing, erasing) is the device's part.
"""

import dataclasses
import math
import re
import struct
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from PIL import Image

from replk_jax.vision.images import read_image, to_array
from replk_jax.vision.preprocessing import Preprocessing
from train.data.operations import VALUE_OPERATIONS
from train.data.randaugment import Operation, RandAugment

RESIZING = ("opencv", "bicubic", "bilinear")

# In the data of a scan: any marker but those that restart the decoder.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
# Second bytes of markers: SOF0 and SOF1, SOS, DQT and DHT.
_FRAMES, _SCAN, _TABLES = {0xC0, 0xC1}, 0xDA, {0xDB, 0xC4}
# Those of segments that are passed over (tables, DRI, APPn, COM), and how long they are at least.
# Pillow trips over JFIF, ICC and Adobe segments (APP0, 2, 14) that end before what they should
# hold, and over what Photoshop leaves (APP13) in more ways.
_LEAST = {marker: 2 for marker in (*_TABLES, 0xDD, *range(0xE0, 0xF0), 0xFE)}
_LEAST |= {0xE0: 16, 0xE2: 16, 0xED: math.inf, 0xEE: 14}
_LARGE = 2**26  # pixels; Pillow warns of larger images, and refuses the largest


class Draws(NamedTuple):
    """What is random about the training view of an image.

    Attributes:
      box: the part that is seen: left, top, right, bottom, in pixels.
      mirrored: whether left and right are exchanged.
      operations: of the augmentation, in turn.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    operations: list[Operation]


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """A random part of the image, resized, mirrored half of the time, and augmented.

    Attributes:
      size: side of the result in pixels.
      channels: 1 for grey, 3 for colour.
      scale, ratio: (smallest, largest) of the part; see `random_box`.
      flip: whether to mirror.
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

        What else the example holds, such as its label, passes unchanged.

        Raises:
          ImageError: bytes that are no image, or not the whole of one.
        """
        # The pipeline works on as many images at once as the configuration has threads, which
        # OpenCV's own would compete with. Said here, where every process of a pipeline passes.
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
        """What happens to an image of this size."""
        box = random_box(width, height, self.scale, self.ratio, rng)
        mirrored = self.flip and rng.random() < 0.5
        return Draws(box, mirrored, self._augmentation.draw(rng))

    def decode(self, example: dict[str, Any]) -> np.ndarray:
        """The pixels of an example, uint8 (H, W, C)."""
        return decode(example["image"], self.channels, example["origin"])

    def crop(self, image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """Cuts (H, W, C) to the box, resized to (S, S, C)."""
        left, top, right, bottom = box
        return resize(image[top:bottom, left:right], self.size, self.resizing)

    def mirror(self, image: np.ndarray) -> np.ndarray:
        """Exchanges left and right."""
        return cv2.flip(image, 1, np.empty_like(image))

    def augment(self, image: np.ndarray, operations: list[Operation]) -> np.ndarray:
        """The operations in turn."""
        return self._augmentation.apply(image, operations)

    @property
    def _augmentation(self) -> "RandAugment | ColorJitter":
        return self.rand_augment or ColorJitter(self.color_jitter)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and colour in random order, as torchvision's `ColorJitter`.

    Attributes:
      strength: s; each factor is uniform between 1 - s, at least 0, and 1 + s. 0 for none.
    """

    strength: float

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """What happens to one image."""
        if not self.strength:
            return []
        names = ["Brightness", "Contrast", "Color"]
        rng.shuffle(names)
        low, high = max(0, 1 - self.strength), 1 + self.strength
        return [(name, (rng.uniform(low, high),)) for name in names]

    def apply(self, image: np.ndarray, drawn: list[Operation]) -> np.ndarray:
        """Maps uint8 (H, W, C) to the same."""
        for name, values in drawn:
            image = VALUE_OPERATIONS[name](image, *values)
        return image


@dataclasses.dataclass(frozen=True)
class Prepare(grain.transforms.Map):
    """What a checkpoint's images go through before evaluation, but for the normalisation.

    Attributes:
      preprocessing: size, crop and channels.
    """

    preprocessing: Preprocessing

    def map(self, example: dict[str, Any]) -> dict[str, Any]:
        """Maps {"image": encoded bytes, "origin": str} to {"image": uint8 (S, S, C)}.

        What else the example holds, such as its label, passes unchanged.

        Raises:
          ImageError: bytes that are no image, or not the whole of one.
        """
        return with_pixels(example, self.preprocessing.pixels(example["image"], example["origin"]))


def with_pixels(example: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
    """The example of a source with its image decoded, and no longer with its origin."""
    rest = {name: value for name, value in example.items() if name != "origin"}
    return {**rest, "image": image}


def decode(data: bytes, channels: int, name: str) -> np.ndarray:
    """The pixels of an encoded image, uint8 (H, W, C), as `read_image` gives them.

    OpenCV decodes photographs as Pillow does, to the bit, straight into an array, and lets more
    threads do so at once. All else is left to Pillow: above all what may be damaged, of which
    OpenCV returns what it could make out.

    Raises:
      ImageError: bytes that are no image, or not the whole of one.
    """
    if channels == 3 and _is_plain_jpeg(data):
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if image is not None:
            return image
    return to_array(read_image(data, channels, name))


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right, bottom.

    Its area is drawn uniformly between `scale` of the image's, the logarithm of its aspect ratio
    uniformly between `ratio`; if ten draws do not fit, the largest centred part with an allowed
    ratio is taken. Szegedy et al., arXiv:1409.4842, section 6.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*map(math.log, ratio)))
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
    """Warps uint8 (H, W, C) to (S, S, C).

    Args:
      image: of any size.
      size: S.
      resizing: "bicubic" or "bilinear", Pillow's, antialiased; or "opencv", in a fraction of their
        time. That is bicubic too (with the parameter -0.75, not -0.5), where an axis shrinks after
        a filter of three taps, and where one shrinks to less than half from means over areas that
        leave twice the size. Photographs become as sharp as by Pillow's bicubic, and differ from
        its 0.6 times as much as Pillow's bilinear does.
    """
    height, width, channels = image.shape
    if resizing == "opencv":
        w, h = min(width, 2 * size), min(height, 2 * size)
        if (w, h) != (width, height):
            image = cv2.resize(image, (w, h), _room(w, h, channels), interpolation=cv2.INTER_AREA)
        if max(w, h) > size:
            taps = _antialiasing(width / size), _antialiasing(height / size)
            room = _room(w, h, channels)
            image = cv2.sepFilter2D(image, -1, *taps, room, borderType=cv2.BORDER_REPLICATE)
        room = _room(size, size, channels)
        return cv2.resize(image, (size, size), room, interpolation=cv2.INTER_CUBIC)
    picture = Image.fromarray(image if channels == 3 else image[:, :, 0])
    return to_array(picture.resize((size, size), Image.Resampling[resizing.upper()]))


def _room(width: int, height: int, channels: int) -> np.ndarray:
    """For a result of OpenCV; see train/data/operations.py."""
    return np.empty((height, width, channels), np.uint8)


def _antialiasing(ratio: float) -> np.ndarray:
    """Three taps for an axis that is to shrink so many times.

    With them photographs become as sharp as by Pillow's bicubic, in the mean square of the
    differences of neighbours. Nearest to it they would be a little smoother, and so smoother than
    what the network is evaluated on.
    """
    if ratio <= 1:
        side = 0.0
    elif ratio <= 2:
        side = 0.02 + 0.18 * (ratio - 1)
    else:  # means over areas have smoothed it already
        side = 0.15
    return np.array([side, 1 - 2 * side, side], np.float32)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether it is a grey or colour JPEG of one scan that nothing interrupts or follows."""
    scan = _start_of_scan(data)
    if scan is None:
        return False
    marker = _MARKER.search(data, scan)
    return marker is not None and data[marker.start() :] == _END_OF_IMAGE


def _start_of_scan(data: bytes) -> int | None:
    """Where the data of the first scan begin; None unless the headers before are as they often are.

    That is a sequence of known segments with the tables of a Huffman code, one frame of 1 or 3
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
        elif length < _LEAST.get(marker, math.inf):
            return None
        seen.add(marker)
        position += 2 + length
    return None
