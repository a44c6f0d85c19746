"""The interface between the engine and a task: loss, examples, metrics, evaluations.

The engine imports no task.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.network import Network
from replk_jax.vision.base_preprocessing import BasePreprocessing
from train.reporting.examination import Examination
from train.reporting.unreadable import Report

Batch = Mapping[str, jax.Array]
Rows = Mapping[str, np.ndarray]  # this process's rows of a batch
# Numbers between 0 and 1 by row and column, such as scores by class; None where there is none.
Table = Mapping[str, Mapping[str, float | None]]


class Forward(Protocol):
    """The network in training mode, as a loss calls it.

    It takes the arguments of `Network.__call__`, without `train`. Each call has its own dropout
    key, and updates the running statistics for the next call. It must not be called inside
    `jax.lax.scan`, `jax.lax.cond` or the like, because the updates could not leave them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the network."""


Predict = Callable[[Callable[..., Any], Batch], Any]
Checked = Callable[[Callable[..., Any], Batch, Any], Any]


class Loss(Protocol):
    """The loss that a run minimises."""

    def __call__(
        self, forward: Forward, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The loss of a batch.

        Args:
          forward: the network. It may be called with the targets too, as cascade detectors need.
          key: random key, of the augmentation for example.
          batch: arrays (N, ...).

        Returns:
          The total loss, float32 (), the mean over the batch; and its terms by name, float32 (),
          which need not add up to the total. Names have no slash, and are not loss, penalty,
          grad_norm or param_norm. All are logged, and the run stops if any is NaN or infinite.
          With accumulation, all micro-batches have the same weight.
        """
        ...


class TrainingExamples(Protocol):
    """Examples to train on.

    The images of a batch are called `image`. Batches may differ in their shapes, of which there
    should be few: a step is compiled for each.

    Attributes:
      steps_per_epoch: whole batches in the data set.
    """

    steps_per_epoch: int

    def batches(self, start_step: int, report: Report) -> Iterator[Rows]:
        """An infinite iterator over this process's rows of the batches.

        Args:
          start_step: number of batches to skip, at no cost.
          report: called with a message for each image that cannot be read.
        """
        ...


class EvaluationExamples(Protocol):
    """Examples to evaluate on.

    Arrays of one batch have the same shape. Each new shape is compiled, so images of different
    sizes should be padded to a few sizes; `mask` or arrays of sizes tell what is padding.
    """

    def batches(self, report: Report) -> Iterator[Rows]:
        """This process's rows of batches that have every example once.

        Each batch has `mask`, bool (N,), which is False for padding.

        Args:
          report: called with a message for each image that cannot be read.
        """
        ...


def add_in_64_bits(total: Any, more: Any) -> Any:
    """The sum of two trees of arrays of numbers; the first may be None."""

    def in_64_bits(array: np.ndarray) -> np.ndarray:
        # To NumPy, bfloat16 is no floating-point type.
        return array.astype(np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else np.int64)

    more = jax.tree.map(in_64_bits, more)
    return more if total is None else jax.tree.map(np.add, total, more)


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of an evaluation.

    A batch is a dictionary of arrays (N, ...), with `mask`, bool (N,), which is False for padding.

    Attributes:
      predict: (forward, batch) -> predictions, computed on the devices. `forward` is the network in
        eval mode, with the arguments of `Network.__call__` without `train`, or with `method` and
        the arguments of that one; it may be called several times, for crops or scales of an image
        for example.
      statistics: (predictions, batch) -> a tree of arrays of any shapes, computed on the devices.
        Usually they are sums over the examples where `mask` is True.
      scores: (statistics of all batches, number of examples) -> {name: number}. A score that is
        NaN or infinite ends the run.
      best_by: name of the score, between 0 and 1, that decides which checkpoint is the best;
        higher is better.
      checked: (forward, batch, predictions) -> a tree of arrays (N, ...), computed on the devices,
        that are finite for a network that has not diverged, and of which both structures are
        compared. The default is all predictions. A detector's are `Network.comparable`: boxes after
        non-maximum suppression may swap places.
      add: (statistics of the batches so far, None at first; those of the next batch, NumPy
        arrays) -> statistics of both. The default adds them; metrics that need every example may
        collect instead.
      table: (statistics of all batches, number of examples) -> a table, such as the scores by
        class, for the final result of an evaluation; None for no table.
    """

    predict: Predict
    statistics: Callable[[Any, Batch], Any]
    scores: Callable[[Any, int], dict[str, float]]
    best_by: str
    checked: Checked = lambda forward, batch, predictions: predictions
    add: Callable[[Any, Any], Any] = add_in_64_bits
    table: Callable[[Any, int], Table] | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of a few examples with the network's predictions for them.

    Attributes:
      examples: a few, as they are for the metrics of the evaluation.
      draw: (this process's rows of a batch, predictions for the whole batch as NumPy arrays) ->
        pictures, uint8 (H, W, 3), of any sizes. The rows of the main process, which draws, are the
        first ones of the batch.
    """

    examples: EvaluationExamples
    draw: Callable[[Rows, Any], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a network: metrics on a set of examples.

    Attributes:
      metrics: to compute. Evaluations with the same `Metrics` object share compiled programs.
      examples: to evaluate on.
      preprocessing: of their images. If these differ in size, all reports have it in words beside
        the scores, which depend on it.
      pictures: to draw whenever the network is evaluated; None for no pictures.
    """

    metrics: Metrics
    examples: EvaluationExamples
    preprocessing: BasePreprocessing
    pictures: Pictures | None = None

    @property
    def note(self) -> str | None:
        """What reports have beside the scores: the preprocessing, if images differ in size."""
        return self.preprocessing.in_words() if self.preprocessing.size is None else None


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of a run: a network with its loss, examples and evaluations.

    Attributes:
      model: the network, in its training-time structure.
      image_size: (height, width) of the training images.
      loss: to minimise.
      training: the examples to train on.
      evaluations: by name, the prefix of their scores in all reports. The first one decides which
        checkpoint is the best.
      preprocessing: of images for the trained network; stored in the checkpoints.
      class_names: of the data; stored in the checkpoints. None without classes.
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
        """The description of the network that is stored in checkpoints."""
        return Checkpoint(self.model, {}, self.preprocessing, self.class_names).description()


@dataclasses.dataclass(frozen=True)
class Preview:
    """The inputs of the first training step, to look at.

    Attributes:
      pictures: uint8 (N, H, W, 3).
      captions: for each picture, at most two lines.
      legend: a picture, uint8 (height, W, 3), to put below all, for a width W in pixels; None for
        no legend.
    """

    pictures: np.ndarray
    captions: list[list[str]]
    legend: Callable[[int], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class TaskKind:
    """A kind of task, classification for example; see `train.tasks.TASKS` and `config.task`.

    All functions take the configuration (see configs/common.py) and raise RunError for an error
    that the user can fix. In a run of several processes, all of them call each function.

    Attributes:
      check: checks the fields of the task.
      task: builds the task of a run.
      evaluations: (configuration, a network from a file) -> evaluations of that network, by name,
        with the preprocessing that is stored with it, if any.
      preview: (configuration, count) -> the first `count` inputs of the first step.
      examine: looks through all examples of the splits for `python -m train.check`. What is wrong
        with them is a finding, not an error.
    """

    check: Callable[[ConfigDict], None]
    task: Callable[[ConfigDict], Task]
    evaluations: Callable[[ConfigDict, Checkpoint], Mapping[str, Evaluation]]
    preview: Callable[[ConfigDict, int], Preview]
    examine: Callable[[ConfigDict], Examination]
