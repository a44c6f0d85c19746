"""The examples of a run: a training and an evaluation split, in batches as the run wants them."""

from collections.abc import Callable, Iterator
from typing import Any

import grain
from ml_collections import ConfigDict

from train.data import pipeline
from train.data.unreadable import Report, reported
from train.errors import RunError
from train.reporting.console import warn


class _Split:
    """Examples, what is applied to each, and how the run reads them."""

    def __init__(
        self,
        source: pipeline.Source,
        transform: grain.transforms.Transformation,
        config: ConfigDict,
    ):
        self._source, self._transform, self._config = source, transform, config

    def _read(
        self, read: Callable[..., Iterator[pipeline.Batch]], report: Report, **options: Any
    ) -> Iterator[pipeline.Batch]:
        data = self._config.data
        batches = read(
            self._source,
            self._transform,
            reading=data.reading,
            replace=data.unreadable == "replace",
            **options,
        )
        return reported(batches, report)


class TrainingSplit(_Split):
    """Examples to train on, over and over, every epoch in an order of its own.

    Args:
      source: the examples.
      transform: applied to each.
      config: see configs/common.py.

    Raises:
      RunError: they are fewer than a batch.
    """

    def __init__(
        self, source: pipeline.Source, transform: grain.transforms.RandomMap, config: ConfigDict
    ):
        super().__init__(source, transform, config)
        self.steps_per_epoch = len(source) // config.batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"{len(source)} training examples do not fill one batch of "
                f"{config.batch_size}; lower --config.batch_size."
            )

    def batches(self, start_step: int, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` on, without end.

        Args:
          start_step: how many batches to pass over, at no cost.
          report: is told of images that cannot be read, in whose place others are taken, if
            `config.data.unreadable` is "replace".
        """
        return self._read(
            pipeline.train_batches,
            report,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            start_step=start_step,
        )


class EvaluationSplit(_Split):
    """Examples to evaluate on, each of them once.

    Args:
      source: the examples.
      transform: applied to each, a `grain.transforms.Map`.
      config: see configs/common.py.
    """

    def batches(self, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that hold every example once; some have `mask` False.

        Args:
          report: is told of images that cannot be read, which are masked, if
            `config.data.unreadable` is "replace".
        """
        return self._read(pipeline.eval_batches, report, batch_size=self._config.eval_batch_size)
