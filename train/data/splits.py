"""Splits of a data set, in batches."""

import dataclasses
from collections.abc import Iterator, Mapping

import grain

from train.data import pipeline
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.unreadable import Report, reported


@dataclasses.dataclass(frozen=True)
class Reading:
    """How examples are read.

    Attributes:
      threads: that decode, in this process or in each worker; None for one per processor.
      workers: processes that read and decode; 0 for none.
      replace: whether another example takes the place of one whose image cannot be read, which is
        an error otherwise.
    """

    threads: int | None = None
    workers: int = 0
    replace: bool = False

    @property
    def parallelism(self) -> Mapping[str, int | None]:
        """`threads` and `workers`, as `train.data.pipeline` takes them."""
        return {"threads": self.threads, "workers": self.workers}


class TrainingSplit:
    """Examples to train on, over and over, in another order each epoch.

    Args:
      source: the examples.
      transform: applied to each.
      batch_size: of all processes together.
      seed: of the order and the transform.
      reading: how they are read.

    Raises:
      RunError: they are fewer than a batch.
    """

    def __init__(
        self,
        source: pipeline.Source,
        transform: grain.transforms.RandomMap,
        *,
        batch_size: int,
        seed: int,
        reading: Reading,
    ):
        self._source, self._transform, self._reading = source, transform, reading
        self._batch_size, self._seed = batch_size, seed
        self.steps_per_epoch = len(source) // batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"{len(source)} training examples do not fill one batch of {batch_size}; lower "
                "--config.batch_size."
            )

    def batches(self, start_step: int, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` on, without end.

        Args:
          start_step: number of batches to skip, which costs nothing.
          report: called for each image that cannot be read, if such images are replaced.
        """
        batches = pipeline.train_batches(
            self._source,
            self._transform,
            batch_size=self._batch_size,
            seed=self._seed,
            start_step=start_step,
            reading=self._reading.parallelism,
            replace=self._reading.replace,
        )
        return reported(batches, report)


class EvaluationSplit:
    """Examples to evaluate on, each of them once.

    Args:
      source: the examples.
      transform: applied to each.
      batch_size: of all processes together.
      reading: how they are read.
    """

    def __init__(
        self,
        source: pipeline.Source,
        transform: grain.transforms.Map,
        *,
        batch_size: int,
        reading: Reading,
    ):
        self._source, self._transform, self._reading = source, transform, reading
        self._batch_size = batch_size

    def batches(self, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that hold every example once; some have `mask` False.

        Args:
          report: called for each image that cannot be read, if such images are replaced; their
            `mask` is False.
        """
        batches = pipeline.eval_batches(
            self._source,
            self._transform,
            batch_size=self._batch_size,
            reading=self._reading.parallelism,
            replace=self._reading.replace,
        )
        return reported(batches, report)
