"""Training and evaluation splits of a data set, in batches."""

import dataclasses
from collections.abc import Iterator, Mapping

from train.data import pipeline
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.unreadable import Report, reported


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading examples.

    Attributes:
      threads: number of decoding threads, in this process or in each worker; None for one per
        processor.
      workers: number of processes that read and decode; 0 for none.
      replace: whether an example whose image cannot be read is replaced by another one; otherwise
        it is an error.
    """

    threads: int | None = None
    workers: int = 0
    replace: bool = False

    @property
    def parallelism(self) -> Mapping[str, int | None]:
        """`threads` and `workers`, as `train.data.pipeline` takes them."""
        return {"threads": self.threads, "workers": self.workers}


class TrainingSplit:
    """Examples to train on, in another order each epoch.

    Args:
      source: the examples.
      transform: applied to each example.
      batch_size: of all processes.
      seed: of the order and of the transform.
      reading: options.

    Raises:
      RunError: there are fewer examples than a batch has.
    """

    def __init__(
        self,
        source: pipeline.Source,
        transform: pipeline.RandomTransform,
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
        """An infinite iterator over this process's rows of the batches.

        Args:
          start_step: number of batches to skip, at no cost.
          report: called with a message for each image that is replaced.
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
    """Examples to evaluate on.

    Args:
      source: the examples.
      transform: applied to each example.
      batch_size: of all processes.
      reading: options.
    """

    def __init__(
        self,
        source: pipeline.Source,
        transform: pipeline.Transform,
        *,
        batch_size: int,
        reading: Reading,
    ):
        self._source, self._transform, self._reading = source, transform, reading
        self._batch_size = batch_size

    def batches(self, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that have every example once.

        `mask` is False for padding and for replaced images.

        Args:
          report: called with a message for each image that is replaced.
        """
        batches = pipeline.eval_batches(
            self._source,
            self._transform,
            batch_size=self._batch_size,
            reading=self._reading.parallelism,
            replace=self._reading.replace,
        )
        return reported(batches, report)
