"""Batches of images of different sizes to train on, each padded to one of a few shapes.

All images of a batch have one shape, a bucket, so each bucket is one compiled program. As by
mmdetection, wide and high images are in different batches; the bucket of an image is that of its
size after resizing and cropping, which the draws of the epoch decide.

mmdetection repeats images to fill the last batch of each group in an epoch. Here the images of a
bucket form one infinite sequence, epoch after epoch, and are cut into batches: in each epoch every
image is used once, and a batch may straddle epochs. A batch belongs to the epoch in which its last
image is; the batches of an epoch are in random order.
"""

import dataclasses
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from train.data import pipeline
from train.data.detection_draws import (
    UNIFORM_NUMBERS,
    DetectionAugmentation,
    Draws,
    ImageDraws,
    Size,
    choose_buckets,
)
from train.data.detection_examples import DetectionExamples
from train.data.detection_transforms import DetectionTransform
from train.data.pipeline import Example
from train.data.splits import Reading
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.unreadable import Report, reported

_EPOCHS_KEPT = 4


class PlannedImage(NamedTuple):
    """An image of a batch.

    Attributes:
      image: its position among the examples.
      draws: its random draws.
      bucket: (height, width) of the batch.
    """

    image: int
    draws: ImageDraws
    bucket: Size


class _Epoch(NamedTuple):
    """An epoch.

    Attributes:
      draws: of each image.
      images: of each bucket, in order.
      batches: (bucket, number of the batch in the sequence of this bucket), in order.
    """

    draws: Draws
    images: list[np.ndarray]
    batches: np.ndarray


class BatchPlan:
    """Which images are in which batch; it depends on the arguments alone.

    The plan of an epoch takes about 0.2 seconds for 100,000 images, and is made when it is needed.
    To resume in an epoch, those of all earlier ones are made again, but nothing is read.

    Args:
      sizes: int (n, 2), height and width of the images.
      augmentation: of each image.
      buckets: (height, width) of the batches.
      batch_size: of all processes.
      seed: of the order and of the draws.

    Raises:
      RunError: there are fewer images than a batch has, or an image may be larger than all buckets.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        augmentation: DetectionAugmentation,
        buckets: tuple[Size, ...],
        batch_size: int,
        seed: int,
    ):
        self._sizes, self._augmentation, self._buckets = sizes, augmentation, buckets
        self._batch_size, self._seed = batch_size, seed
        self.steps_per_epoch = len(sizes) // batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"{len(sizes)} training examples do not fill one batch of {batch_size}; lower "
                "--config.batch_size."
            )
        # The number of images of each bucket before epoch 0, 1, ...
        self._before = np.zeros((1, len(buckets)), np.int64)
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_epochs": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def at(self, row: int, offset: int = 0) -> PlannedImage:
        """The image at a row of all batches, counted from the first batch.

        Args:
          row: the number of the batch times the batch size, plus the position in the batch.
          offset: for an image in place of it, that many places later in the order of its bucket and
            epoch, which starts again at its end.
        """
        step, position = divmod(row, self._batch_size)
        with self._lock:
            while self._steps_before()[-1] <= step:
                self._plan(len(self._before) - 1)
            steps = self._steps_before()
            epoch = int(np.searchsorted(steps, step, side="right")) - 1
            bucket, batch = self._plan(epoch).batches[step - steps[epoch]].tolist()
            place = batch * self._batch_size + position
            epoch = int(np.searchsorted(self._before[:, bucket], place, side="right")) - 1
            plan = self._plan(epoch)
        images = plan.images[bucket]
        image = int(images[(place - self._before[epoch, bucket] + offset) % len(images)])
        return PlannedImage(image, plan.draws.of(image), self._buckets[bucket])

    def _steps_before(self) -> np.ndarray:
        """The number of batches before epoch 0, 1, ..., as far as these are known."""
        return (self._before // self._batch_size).sum(axis=1)

    def _plan(self, epoch: int) -> _Epoch:
        """The plan of an epoch, of which all earlier ones are known."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._sizes))
        draws = self._augmentation.draw(
            self._sizes, rng.random((len(self._sizes), UNIFORM_NUMBERS))
        )
        chosen = choose_buckets(draws.sizes, self._buckets)
        self._require_bucket(chosen, draws.sizes)
        images = [order[chosen[order] == bucket] for bucket in range(len(self._buckets))]
        before = self._before[epoch]
        after = before + [len(some) for some in images]
        if epoch == len(self._before) - 1:
            self._before = np.vstack([self._before, after])
        first, end = before // self._batch_size, after // self._batch_size
        batches = [
            (bucket, batch)
            for bucket in range(len(self._buckets))
            for batch in range(first[bucket], end[bucket])
        ]
        shuffled = rng.permutation(np.array(batches, np.int64).reshape(-1, 2))
        while len(self._epochs) >= _EPOCHS_KEPT:
            self._epochs.pop(next(iter(self._epochs)))
        self._epochs[epoch] = _Epoch(draws, images, shuffled)
        return self._epochs[epoch]

    def _require_bucket(self, chosen: np.ndarray, sizes: np.ndarray) -> None:
        if (chosen < 0).any():
            height, width = sizes[np.argmin(chosen)].tolist()
            raise RunError(
                f"An image becomes {width} x {height} pixels, and config.data.buckets = "
                f"{self._buckets} (height, width) has none for it: add one, or lower "
                "config.data.scales."
            )


class DetectionTraining:
    """Examples to train a detector on; see `train.engine.task.TrainingExamples`.

    Args:
      examples: to train on.
      augmentation: of each example.
      max_objects: see `DetectionTransform`.
      masks: see `DetectionTransform`.
      buckets: (height, width) of the batches.
      batch_size: of all processes.
      seed: of the order and of the augmentation.
      reading: options.

    Raises:
      RunError: see `BatchPlan`.
    """

    def __init__(
        self,
        examples: DetectionExamples,
        augmentation: DetectionAugmentation,
        *,
        max_objects: int,
        masks: bool,
        buckets: tuple[Size, ...],
        batch_size: int,
        seed: int,
        reading: Reading,
    ):
        self._plan = BatchPlan(examples.table.sizes, augmentation, buckets, batch_size, seed)
        transform = DetectionTransform(augmentation.flips_first, max_objects, masks)
        self._example = _TrainExample(examples, self._plan, transform, reading.replace)
        self._batch_size, self._reading = batch_size, reading
        self.steps_per_epoch = self._plan.steps_per_epoch

    def batches(self, start_step: int, report: Report = warn) -> Iterator[pipeline.Batch]:
        """An infinite iterator over this process's rows of the batches.

        Args:
          start_step: number of batches to skip, without reading them.
          report: called with a message for each image that is replaced.

        Yields:
          Arrays (batch_size / processes, ...); see `DetectionTransform.map`.
        """
        dataset = grain.MapDataset.range(sys.maxsize).map(self._example)
        batches = pipeline.read_batches(
            dataset, self._batch_size, self._reading.parallelism, start_step
        )
        return reported(batches, report)


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.Map):
    """The transformed training example of a row."""

    examples: DetectionExamples
    plan: BatchPlan
    transform: DetectionTransform
    replace: bool

    def map(self, element: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # Grain's returns None
        def read(offset: int) -> Example:
            image, draws, bucket = self.plan.at(int(element), offset)
            return self.transform.map(self.examples[image], draws, bucket)

        example, unreadable = pipeline.first_readable(read, self.replace)
        return pipeline.with_fields(example, unreadable=np.str_("\n".join(unreadable)))
