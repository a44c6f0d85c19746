"""The contract between a run and its task: loss, examples, metrics, evaluations.

The engine knows no task, and a task knows nothing of the engine but this file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.network import Network
from replk_jax.vision.base_preprocessing import BasePreprocessing
from train.reporting.unreadable import Report

Batch = Mapping[str, jax.Array]
Rows = Mapping[str, np.ndarray]  # those of a batch that one process reads


class Forward(Protocol):
    """A network in training, as a loss sees it.

    Called with what `Network.__call__` takes, without `train`. Each call has dropout of its own
    and updates the running statistics, which the next call starts from. Calls must not be inside
    `jax.lax.scan`, `cond` or the like: the updates would not leave it.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the network."""


class Loss(Protocol):
    """What a run minimises."""

    def __call__(
        self, forward: Forward, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Runs the network on a batch.

        The batch may go into the network with its targets, as a cascade of detectors needs it.

        Args:
          forward: the network.
          key: of the augmentation, and of whatever else the loss draws.
          batch: arrays (N, ...).

        Returns:
          The total loss, a float32 scalar, the mean over the batch; and its terms by name, float32
          scalars, which need not add up to it. Both are logged, and checked for being finite.
          With accumulation, every micro-batch has the same weight.
        """
        ...


class TrainingExamples(Protocol):
    """Examples to train on.

    Attributes:
      steps_per_epoch: whole batches in the data set.
    """

    steps_per_epoch: int

    def batches(self, start_step: int, report: Report) -> Iterator[Rows]:
        """This process's rows of the batches from `start_step` on, without end.

        Args:
          start_step: number of batches to skip, which costs nothing.
          report: called with a message for each image that cannot be read.
        """
        ...


class EvaluationExamples(Protocol):
    """Examples to evaluate on."""

    def batches(self, report: Report) -> Iterator[Rows]:
        """This process's rows of batches that have every example once.

        Each batch has `mask`, bool (N,): which of its examples count.

        Args:
          report: called with a message for each image that cannot be read.
        """
        ...


def add_in_64_bits(total: Any, more: Any) -> Any:
    """The sum of two trees of arrays of numbers; the first may be None."""

    def in_64_bits(array: np.ndarray) -> np.ndarray:
        # NumPy alone would not take bfloat16 for a floating type.
        return array.astype(np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else np.int64)

    more = jax.tree.map(in_64_bits, more)
    return more if total is None else jax.tree.map(np.add, total, more)


@dataclasses.dataclass(frozen=True)
class Metrics:
    """How the quality of a network is measured.

    A batch is a dictionary of arrays (N, ...), with `mask`, bool (N,): which examples count.

    Attributes:
      inputs: batch -> what the network takes, float32 (N, H, W, C).
      statistics: (outputs of the network, batch) -> a tree of arrays of any shapes, computed on
        the devices: usually sums over the examples that count.
      scores: (statistics of all batches, number of examples) -> {name: number}.
      best_by: name of the score by which the best checkpoint is chosen, between 0 and 1; higher is
        better.
      add: (statistics of the batches so far, None at first; those of one batch, NumPy arrays) ->
        statistics of all. The default sums; metrics that need each example may collect instead.
    """

    inputs: Callable[[Batch], jax.Array]
    statistics: Callable[[Any, Batch], Any]
    scores: Callable[[Any, int], dict[str, float]]
    best_by: str
    add: Callable[[Any, Any], Any] = add_in_64_bits


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation: a split or a protocol.

    Attributes:
      metrics: how the network is measured. Evaluations that share this object share what is
        compiled.
      examples: on which it is measured.
      preprocessing: of their images.
    """

    metrics: Metrics
    examples: EvaluationExamples
    preprocessing: BasePreprocessing


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is trained for in one run.

    Attributes:
      model: the network, in its training-time structure.
      image_size: (height, width) of the images that it is trained on.
      loss: what the run minimises.
      training: the examples of the steps.
      evaluations: by name, which prefixes their scores in all reports. By the first of them the
        best checkpoint is chosen.
      preprocessing: of the images that the network is for, stored with its checkpoints.
      class_names: stored as well; None where there are no classes.
    """

    model: Network
    image_size: tuple[int, int]
    loss: Loss
    training: TrainingExamples
    evaluations: Mapping[str, Evaluation]
    preprocessing: BasePreprocessing
    class_names: tuple[str, ...] | None

    @property
    def description(self) -> dict[str, Any]:
        """Of the network, as a checkpoint stores it."""
        return Checkpoint(self.model, {}, self.preprocessing, self.class_names).description()


@dataclasses.dataclass(frozen=True)
class Preview:
    """The inputs of the first training step, as people can look at them.

    Attributes:
      pictures: uint8 (N, H, W, 3).
      captions: for each picture, at most two lines.
    """

    pictures: np.ndarray
    captions: list[list[str]]


@dataclasses.dataclass(frozen=True)
class TaskKind:
    """A kind of task, which `config.task` names; see `train.tasks.TASKS`.

    All functions take the configuration (see configs/common.py) and raise RunError for an error
    that the user can fix. In a run of several processes, all of them call each function.

    Attributes:
      check: raises for fields of the task whose values make no sense.
      task: builds the task of a run.
      evaluations: (configuration, a network from a file) -> the evaluations of that network, by
        name, with its images prepared as is known of it.
      preview: (configuration, count) -> the first `count` inputs of the first step.
    """

    check: Callable[[ConfigDict], None]
    task: Callable[[ConfigDict], Task]
    evaluations: Callable[[ConfigDict, Checkpoint], Mapping[str, Evaluation]]
    preview: Callable[[ConfigDict, int], Preview]
