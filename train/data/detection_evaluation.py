"""Evaluation of detectors: every image once, resized by the protocol and padded to a few shapes."""

import dataclasses
from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.vision.keep_ratio import size_within
from train.data import pipeline
from train.data.detection_draws import Size, choose_buckets
from train.data.detection_examples import DetectionExamples
from train.data.detection_transforms import decode_upright
from train.data.grouped_batches import grouped_batches
from train.data.pipeline import Example
from train.data.splits import Reading
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.unreadable import Report, reported


@dataclasses.dataclass(frozen=True)
class DetectionTestTransform:
    """Resizes an image by a protocol, and pads it.

    Attributes:
      protocol: of the test.
      buckets: (height, width) of the padded images, of which the smallest that holds an image is
        taken; () for the least multiple of `protocol.pad_multiple`, as by mmdetection, which gives
        many shapes.
    """

    protocol: DetectionProtocol
    buckets: tuple[Size, ...] = ()

    def map(self, example: Example) -> Example:
        """Transforms an example of `DetectionExamples`.

        Returns:
          `image`, uint8 (H, W, 3), RGB, padded with 0 at the right and at the bottom, where (H, W)
          is from `padded_size`; `size`, int32 (2,), height and width of what is not padding;
          `scale`, float32 (2,), the new side over the old one, vertical and horizontal;
          `original_size`, int32 (2,), height and width of the image in the data set; and
          `image_id`, int32 (), of `ObjectTable.image_ids`.

        Raises:
          ImageError: the image cannot be read, or has not the size that the annotations state.
        """
        cv2.setNumThreads(0)
        image = decode_upright(example)
        result = self.blank(example["size"]) | {"image_id": example["image_id"]}
        for height, width in self._steps(*example["size"]):
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        result["image"][: image.shape[0], : image.shape[1]] = image
        return result

    def blank(self, size: Size) -> Example:
        """The arrays of an image of a size (height, width), without its pixels, with the id 0."""
        return {
            "image": np.zeros((*self.padded_size(size), 3), np.uint8),
            "size": np.array(self.protocol.resized_size(*size), np.int32),
            "scale": self.protocol.scale_factors(*size),
            "original_size": np.array(size, np.int32),
            "image_id": np.int32(0),
        }

    def padded_size(self, size: Size) -> Size:
        """(height, width) of the array of an image of a size.

        Raises:
          RunError: no bucket holds it.
        """
        if not self.buckets:
            return self.protocol.padded_size(*size)
        resized = self.protocol.resized_size(*size)
        bucket = int(choose_buckets(np.array([resized]), self.buckets)[0])
        if bucket < 0:
            raise RunError(
                f"An image to evaluate on becomes {resized[1]} x {resized[0]} pixels, and the "
                f"buckets {self.buckets} (height, width) have none for it: add one, or lower the "
                "limits of the test."
            )
        return self.buckets[bucket]

    def _steps(self, height: int, width: int) -> tuple[Size, Size]:
        """The sizes to which `KeepRatio.resized_pixels` resizes an image, one after the other."""
        return (
            size_within(height, width, self.protocol.limits),
            self.protocol.resized_size(height, width),
        )


class DetectionEvaluation:
    """Examples to evaluate a detector on; see `train.engine.task.EvaluationExamples`.

    Args:
      examples: to evaluate on.
      transform: of each example.
      batch_size: of all processes.
      reading: options.
      count: number of examples to use, the first ones of the most frequent shape; None for all.
    """

    def __init__(
        self,
        examples: DetectionExamples,
        transform: DetectionTestTransform,
        *,
        batch_size: int,
        reading: Reading,
        count: int | None = None,
    ):
        self._examples, self._transform, self._reading = examples, transform, reading
        self._batch_size, self._count = batch_size, count

    def batches(self, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that have every example once.

        All images of a batch have one shape; see `DetectionTestTransform.map`. `mask`, bool (N,),
        is False for padding and for images that cannot be read.

        Args:
          report: called with a message for each image that cannot be read.

        Raises:
          RunError: an image cannot be read, and `reading` does not replace it.
        """
        table = self._examples.table
        batches = grouped_batches(
            self._examples,
            self._transform,
            self.groups().values(),
            [table.size(image) for image in range(len(table))],
            self._batch_size,
            self._reading,
        )
        return reported(batches, report)

    def groups(self) -> Mapping[Size, list[int]]:
        """The positions of the examples by the shape of their arrays, the most frequent first.

        A program is compiled for each.
        """
        table, groups = self._examples.table, {}
        for image in range(len(table)):
            groups.setdefault(self._transform.padded_size(table.size(image)), []).append(image)
        order = sorted(groups, key=lambda shape: (-len(groups[shape]), shape))
        if self._count is None:
            return {shape: groups[shape] for shape in order}
        return {order[0]: groups[order[0]][: self._count]}
