"""Random transforms of an image and its mask together, for training a segmentation network.

The steps and their distributions are those of mmsegmentation 0.30: resizing by a random ratio, a
random crop that no class dominates, a flip, photometric distortion, and padding. Normalisation runs
on the device.
"""

import dataclasses
from typing import Any, NamedTuple

import cv2
import numpy as np

from replk_jax.vision.keep_ratio import ratio_limits, size_within
from replk_jax.vision.label_sets import IGNORED, LabelSet
from train.data.masks import decode_pair
from train.data.photometric import Distortion, distort, draw_distortion

_CROPS = 11  # are drawn at most; the last one is taken unchecked


class SegmentationDraws(NamedTuple):
    """The random draws for an image.

    Attributes:
      size: (height, width) of the resized image.
      offsets: (row, column) of the upper left corner of each crop that may be tried, in order.
      mirrored: whether the crop is flipped horizontally.
      distortion: of its colours; None for none.
    """

    size: tuple[int, int]
    offsets: tuple[tuple[int, int], ...]
    mirrored: bool
    distortion: Distortion | None


@dataclasses.dataclass(frozen=True)
class SegmentationTransform:
    """Resizes, crops, flips, distorts and pads an image with its mask.

    Attributes:
      limits: (long, short), of the sides of the resized image in pixels, before the random ratio;
        see `replk_jax.vision.keep_ratio.size_within`.
      ratio_range: (smallest, largest) of the factor on both limits, which is uniform.
      crop_size: (height, width) of the result in pixels.
      cat_max_ratio: a crop is drawn again while one class has at least this share of its pixels
        that are not ignored, or the only class; ten times at most. 1 takes the first crop.
      flip: whether to flip horizontally with probability 1/2.
      photometric: whether to distort the colours; see `train.data.photometric`.
      label_set: of the masks.
    """

    limits: tuple[int, int]
    ratio_range: tuple[float, float]
    crop_size: tuple[int, int]
    cat_max_ratio: float
    flip: bool
    photometric: bool
    label_set: LabelSet

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Transforms an example of a `SegmentationSource`.

        Returns:
          "image": uint8 (h, w, 3), RGB; "mask": uint8 (h, w), classes and `IGNORED`; "valid_size":
          int32 (2,), height and width of the upper left part that is not padding, outside which the
          image is 0 and the mask `IGNORED`. (h, w) is `crop_size`.

        Raises:
          ImageError: see `train.data.masks.decode_pair`.
        """
        # OpenCV's own threads would compete with those of the pipeline. This is set here because
        # all processes of the pipeline call this function.
        cv2.setNumThreads(0)
        image, mask = self.decode(example)
        height, width = mask.shape
        draws = self.draw(width, height, rng)
        image, mask = self.resize(image, mask, draws.size)
        image, mask = self.crop(image, mask, draws.offsets)
        if draws.mirrored:
            image, mask = self.mirror(image, mask)
        return self.pad(self.distort(image, draws.distortion), mask)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> SegmentationDraws:
        """The random draws for an image of this size."""
        low, high = self.ratio_range
        ratio = low + (high - low) * rng.random()
        size = size_within(height, width, ratio_limits(self.limits, ratio))
        margins = [max(side - crop, 0) + 1 for side, crop in zip(size, self.crop_size, strict=True)]
        count = _CROPS if self.cat_max_ratio < 1 else 1
        offsets = rng.integers(margins, size=(count, 2)).tolist()
        mirrored = self.flip and bool(rng.random() < 0.5)
        distortion = draw_distortion(rng) if self.photometric else None
        return SegmentationDraws(
            size, tuple((row, column) for row, column in offsets), mirrored, distortion
        )

    def decode(self, example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """See `train.data.masks.decode_pair`."""
        return decode_pair(example, self.label_set)

    def resize(
        self, image: np.ndarray, mask: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask at a size (height, width): bilinear, and the nearest value."""
        height, width = size
        if size == mask.shape:
            return image, mask
        # OpenCV gets arrays for its results, because it would have to wait for Python's lock to
        # make them.
        resized = np.empty((height, width, 3), np.uint8)
        cv2.resize(image, (width, height), resized, interpolation=cv2.INTER_LINEAR)
        labels = np.empty((height, width), np.uint8)
        cv2.resize(mask, (width, height), labels, interpolation=cv2.INTER_NEAREST)
        return resized, labels

    def crop(
        self, image: np.ndarray, mask: np.ndarray, offsets: tuple[tuple[int, int], ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first crop that no class dominates, or the last one.

        A side that is shorter than that of the crop stays as it is.
        """
        height, width = self.crop_size
        *tried, (row, column) = offsets
        for offset in tried:
            part = mask[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
            if not _is_dominated(part, self.cat_max_ratio):
                row, column = offset
                break
        rows, columns = slice(row, row + height), slice(column, column + width)
        return image[rows, columns], mask[rows, columns]

    def mirror(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flips both horizontally."""
        return (
            cv2.flip(image, 1, np.empty(image.shape, np.uint8)),
            cv2.flip(mask, 1, np.empty(mask.shape, np.uint8)),
        )

    def distort(self, image: np.ndarray, distortion: Distortion | None) -> np.ndarray:
        """See `train.data.photometric.distort`."""
        return image if distortion is None else distort(image, distortion)

    def pad(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """Pads to `crop_size` at the right and at the bottom; see `random_map`."""
        height, width = mask.shape
        pixels = np.zeros((*self.crop_size, 3), np.uint8)
        pixels[:height, :width] = image
        labels = np.full(self.crop_size, IGNORED, np.uint8)
        labels[:height, :width] = mask
        return {
            "image": pixels, "mask": labels, "valid_size": np.array([height, width], np.int32)
        }  # fmt: skip


def _is_dominated(mask: np.ndarray, limit: float) -> bool:
    """Whether one class has at least this share of the pixels that are not ignored.

    A mask with one class, or none, is dominated whatever the limit.
    """
    counts = cv2.calcHist([mask], [0], None, [IGNORED], [0, IGNORED]).ravel()
    if np.count_nonzero(counts) < 2:
        return True
    return counts.max() / counts.sum(dtype=np.float64) >= limit
