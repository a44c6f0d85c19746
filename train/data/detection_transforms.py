"""Transforms of an image with its boxes and masks, for training a detector.

The steps are those of mmdetection 2.28 (`RandomFlip`, `Resize`, `RandomCrop`, `Pad`) with masks as
bitmaps. Normalisation runs on the device.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError
from train.data.detection_draws import ImageDraws, Size
from train.data.pipeline import Example
from train.data.transforms import decode


class Annotated(NamedTuple):
    """An image of H x W pixels with its n objects.

    Attributes:
      image: uint8 (H, W, 3).
      boxes: float32 (n, 4): x1, y1, x2, y2 in pixels.
      classes: int32 (n,).
      masks: uint8 (n, H, W), 1 in the object and 0 elsewhere; None for boxes alone.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """(height, width)."""
        height, width = self.image.shape[:2]
        return height, width


@dataclasses.dataclass(frozen=True)
class DetectionTransform:
    """Flips, resizes, crops and pads an image with its objects.

    Attributes:
      flips_first: whether a flip precedes resizing.
      max_objects: number of objects of a result, M. The smallest of more are left out.
      masks: whether there are masks.
    """

    flips_first: bool
    max_objects: int
    masks: bool

    def map(self, example: Example, draws: ImageDraws, bucket: Size) -> Example:
        """Transforms an example of `DetectionExamples`.

        Args:
          example: to train on.
          draws: its random draws.
          bucket: (H, W) of the result.

        Returns:
          `image`, uint8 (H, W, 3), RGB, padded with 0 at the right and at the bottom; `size`,
          int32 (2,), height and width of what is not padding; `boxes`, float32 (M, 4), `classes`,
          int32 (M,), and `valid`, bool (M,), False for padding; and with masks `masks`, uint8
          (M, H, ceil(W / 8)). See `replk_jax.detection.structures.Truths`.

        Raises:
          ImageError: the image or a mask cannot be read, or the image has not the size that the
            annotations state.
        """
        # OpenCV's own threads would compete with those of the pipeline. This is set here because
        # all processes of the pipeline call this function.
        cv2.setNumThreads(0)
        annotated = self.decode(example)
        if draws.mirrored and self.flips_first:
            annotated = mirror(annotated)
        if draws.crop is not None:
            annotated = crop(resize(annotated, draws.first_size), *draws.crop)
        annotated = resize(annotated, draws.size)
        if draws.mirrored and not self.flips_first:
            annotated = mirror(annotated)
        return self.pad(annotated, bucket)

    def decode(self, example: Example) -> Annotated:
        """The pixels of an image and of its masks."""
        image, (height, width) = decode_upright(example), example["size"]
        if not self.masks:
            return Annotated(image, example["boxes"], example["classes"])
        masks = np.zeros((len(example["numbers"]), height, width), np.uint8)
        for i, number in enumerate(example["numbers"].tolist()):
            masks[i] = example["masks"].bitmap(number, height, width)
        return Annotated(image, example["boxes"], example["classes"], masks)

    def pad(self, annotated: Annotated, bucket: Size) -> Example:
        """Pads the image, and the objects to `max_objects`; see `map`."""
        (height, width), (rows, columns) = annotated.size, bucket
        kept = _largest(annotated.boxes, self.max_objects)
        count = len(kept)
        image = np.zeros((rows, columns, 3), np.uint8)
        image[:height, :width] = annotated.image
        boxes = np.zeros((self.max_objects, 4), np.float32)
        boxes[:count] = annotated.boxes[kept]
        classes = np.zeros(self.max_objects, np.int32)
        classes[:count] = annotated.classes[kept]
        result: Example = {
            "image": image,
            "size": np.array((height, width), np.int32),
            "boxes": boxes,
            "classes": classes,
            "valid": np.arange(self.max_objects) < count,
        }
        if annotated.masks is not None:
            masks = np.zeros((self.max_objects, rows, -(-columns // 8)), np.uint8)
            packed = np.packbits(annotated.masks[kept], axis=-1)
            masks[:count, :height, : packed.shape[-1]] = packed
            result["masks"] = masks
        return result


def decode_upright(example: Example) -> np.ndarray:
    """The pixels of the image of an example, uint8 (H, W, 3), RGB.

    Raises:
      ImageError: it cannot be read, or has not the size that the annotations state.
    """
    image = decode(example["image"], 3, example["origin"], upright=True)
    if image.shape[:2] != example["size"]:
        height, width = example["size"]
        raise ImageError(
            escaped(
                f"The image {example['origin']} has {image.shape[1]} x {image.shape[0]} pixels "
                f"when it is upright, and its annotations are for {width} x {height}: correct the "
                "one that is wrong."
            )
        )
    return image


def resize(annotated: Annotated, size: Size) -> Annotated:
    """Resizes to (height, width), and clips boxes to the image.

    Images are resized bilinearly; of masks the nearest value is taken.
    """
    height, width = size
    old_height, old_width = annotated.size
    image, masks = annotated.image, annotated.masks
    if size != annotated.size:
        # OpenCV gets arrays for its results, because it would have to wait for Python's lock to
        # make them.
        image = np.empty((height, width, 3), np.uint8)
        cv2.resize(annotated.image, (width, height), image, interpolation=cv2.INTER_LINEAR)
        if masks is not None:
            old, masks = masks, np.empty((len(masks), height, width), np.uint8)
            for mask, resized in zip(old, masks, strict=True):
                cv2.resize(mask, (width, height), resized, interpolation=cv2.INTER_NEAREST)
    factors = np.array((width / old_width, height / old_height) * 2, np.float32)
    boxes = _clip(annotated.boxes * factors, size)
    return Annotated(image, boxes, annotated.classes, masks)


def crop(annotated: Annotated, top: int, left: int, height: int, width: int) -> Annotated:
    """A part of the image, and the objects whose boxes have a part of it."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    shift = np.array((left, top, left, top), np.float32)
    boxes = _clip(annotated.boxes - shift, (height, width))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    masks = annotated.masks
    return Annotated(
        annotated.image[rows, columns],
        boxes[kept],
        annotated.classes[kept],
        None if masks is None else masks[kept, rows, columns],
    )


def mirror(annotated: Annotated) -> Annotated:
    """Flips horizontally."""
    width = annotated.size[1]
    boxes = annotated.boxes.copy()
    boxes[:, 0] = width - annotated.boxes[:, 2]
    boxes[:, 2] = width - annotated.boxes[:, 0]
    masks = annotated.masks
    return Annotated(
        cv2.flip(annotated.image, 1, np.empty(annotated.image.shape, np.uint8)),
        boxes,
        annotated.classes,
        None if masks is None else np.ascontiguousarray(masks[:, :, ::-1]),
    )


def _clip(boxes: np.ndarray, size: Size) -> np.ndarray:
    height, width = size
    return boxes.clip(0, np.array((width, height, width, height), np.float32))


def _largest(boxes: np.ndarray, count: int) -> np.ndarray:
    """The positions of the `count` largest boxes at most, in order."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind="stable")[:count])
