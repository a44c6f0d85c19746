"""All evaluations of a run, and the score that decides which checkpoint is the best."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from replk_jax.models.network import Network
from train.engine import parallel
from train.engine.evaluation import Evaluator
from train.engine.step import TrainState, Variables
from train.engine.task import Batch, Evaluation, Rows
from train.errors import RunError
from train.reporting.unreadable import Report

_EMA = "_ema"  # suffix of the names of the EMA's evaluations


class Evaluations:
    """The evaluations of a run.

    Args:
      model: the network, in its training-time structure.
      evaluations: by name. The first one decides which checkpoint is the best.
      mesh: of the devices.
      report: called with a message for each image that cannot be read.
    """

    def __init__(
        self, model: Network, evaluations: Mapping[str, Evaluation], mesh: Mesh, report: Report
    ):
        check_names(evaluations)
        self._evaluations, self._mesh, self._report = evaluations, mesh, report
        self._first = next(iter(evaluations))
        self._evaluators = make_evaluators(model, evaluations, mesh)

    def check(self, state: TrainState) -> None:
        """Evaluates a batch of every evaluation, so that errors are found before training.

        Raises:
          ValueError: the scores of an evaluation have no `best_by`.
        """
        for name, evaluator in self._evaluators.items():
            evaluator.check(state.variables, self._first_batch(name))

    def largest_output(self, state: TrainState) -> float:
        """The largest absolute prediction for the first batch of the first evaluation.

        NaN if any is NaN.
        """
        evaluator = self._evaluators[self._first]
        return evaluator.largest_output(state.variables, self._first_batch(self._first))

    def _first_batch(self, name: str) -> Batch:
        if name != self._first:
            return next(self._batches(name))
        (batch,) = parallel.global_batches([self._first_rows], self._mesh)
        return batch

    @functools.cached_property
    def _first_rows(self) -> Rows:
        """The first rows of the first evaluation, which every save needs."""
        return next(self._evaluations[self._first].examples.batches(self._report))

    def scores(self, state: TrainState) -> dict[str, float]:
        """All scores of the network, as `NAME/score`, and of its EMA, as `NAME_ema/score`."""
        return {
            f"{name}{suffix}/{score}": value
            for name, evaluator in self._evaluators.items()
            for suffix, variables in _networks(state).items()
            for score, value in evaluator.evaluate(variables, self._batches(name)).items()
        }

    def notes(self) -> dict[str, str]:
        """What reports have beside the scores, by the prefix of these; see `Evaluation.note`."""
        return {
            f"{name}{suffix}": evaluation.note
            for name, evaluation in self._evaluations.items()
            for suffix in ("", _EMA)
            if evaluation.note
        }

    def pictures(self, state: TrainState) -> dict[str, np.ndarray]:
        """The pictures of all evaluations by name, uint8 (H, W, 3); of the EMA if there is one.

        Only the main process draws.
        """
        variables = state.variables if state.ema is None else state.ema
        return {
            picture: pixels
            for name, evaluation in self._evaluations.items()
            for picture, pixels in draw_pictures(
                evaluation, self._evaluators[name], variables, self._mesh, self._report, name
            ).items()
        }

    def best_score(self, scores: Mapping[str, float]) -> float:
        """The score of a checkpoint: the higher one of the network and of its EMA; NaN counts as 0.

        Early in a run the network has the higher score, since the EMA lags behind.

        Args:
          scores: from `scores`.
        """
        network = f"{self._first}/{self._best_by}"
        ema = f"{self._first}{_EMA}/{self._best_by}"
        found = [scores[network], scores.get(ema, 0.0)]
        return max(0.0 if math.isnan(score) else score for score in found)

    def compare(self, state: TrainState) -> dict[str, Any]:
        """Evaluates both structures of the network and of its EMA.

        Returns:
          The result of the first evaluation: that of `Evaluator.compare`, and in `ema` the same for
          the EMA, if there is one. The results of the other evaluations are in `evaluations`, by
          name. Each has the `preprocessing` of its images and, if these differ in size, the same
          in words as `protocol`. `best_by` is the name of the score that decides which checkpoint
          is the best.
        """
        compared = {name: self._compare(state, name) for name in self._evaluators}
        first = compared.pop(self._first)
        others = {"evaluations": compared} if compared else {}
        return {"best_by": self._best_by, **first, **others}

    @property
    def _best_by(self) -> str:
        return self._evaluations[self._first].metrics.best_by

    def _compare(self, state: TrainState, name: str) -> dict[str, Any]:
        evaluator = self._evaluators[name]
        result = evaluator.compare(state.variables, self._batches(name))
        if state.ema is not None:
            result["ema"] = evaluator.compare(state.ema, self._batches(name))
        return {**result, **preprocessing_of(self._evaluations[name])}

    def _batches(self, name: str) -> Iterator[Batch]:
        """The batches of an evaluation."""
        rows = self._evaluations[name].examples.batches(self._report)
        return parallel.global_batches(rows, self._mesh)


def _networks(state: TrainState) -> dict[str, Variables]:
    """The variables to evaluate, by the suffix of the evaluation's name."""
    return {"": state.variables} | ({} if state.ema is None else {_EMA: state.ema})


def preprocessing_of(evaluation: Evaluation) -> dict[str, Any]:
    """How the images were prepared, for the result of an evaluation."""
    preprocessing = {"preprocessing": evaluation.preprocessing.as_dict()}
    return preprocessing | ({"protocol": evaluation.note} if evaluation.note else {})


def draw_pictures(
    evaluation: Evaluation,
    evaluator: Evaluator,
    variables: Variables,
    mesh: Mesh,
    report: Report,
    prefix: str,
) -> dict[str, np.ndarray]:
    """The pictures of an evaluation, uint8 (H, W, 3), in the main process.

    All processes compute the predictions.

    Args:
      evaluation: with or without pictures.
      evaluator: of the evaluation.
      variables: of the network.
      mesh: of the devices.
      report: called with a message for each image that cannot be read.
      prefix: of the names of the pictures.
    """
    if evaluation.pictures is None:
        return {}
    drawn: list[np.ndarray] = []
    for rows in evaluation.pictures.examples.batches(report):
        batches = parallel.global_batches([rows], mesh)
        for predictions in evaluator.predictions(variables, batches):
            if parallel.is_main_process():
                drawn += evaluation.pictures.draw(rows, predictions)
    return {f"{prefix}_{number}": pixels for number, pixels in enumerate(drawn)}


def make_evaluators(
    model: Network, evaluations: Mapping[str, Evaluation], mesh: Mesh
) -> dict[str, Evaluator]:
    """Evaluators by the names of the evaluations; one for all that have the same metrics."""
    by_metrics = {
        id(evaluation.metrics): Evaluator(model, evaluation.metrics, mesh)
        for evaluation in evaluations.values()
    }
    return {name: by_metrics[id(evaluation.metrics)] for name, evaluation in evaluations.items()}


def check_names(evaluations: Mapping[str, Evaluation]) -> None:
    """Checks that the scores of evaluations have names of their own in all reports.

    Raises:
      RunError: there are no evaluations, or a name that is empty, has a slash, is that of the
        training metrics, or ends in the suffix of the EMA.
    """
    if not evaluations:
        raise RunError("A run needs an evaluation, which decides which checkpoint is the best.")
    for name in evaluations:
        if not name or "/" in name or name == "train" or name.removesuffix(_EMA) != name:
            raise RunError(
                f"An evaluation cannot be named {name!r}: without a slash, not train, and not "
                f"ending in {_EMA}."
            )
