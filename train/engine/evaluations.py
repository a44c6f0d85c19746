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
from train.engine.task import Batch, Evaluation
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
        self._evaluations, self._mesh, self._report = evaluations, mesh, report
        self._first = next(iter(evaluations))
        # One for all evaluations with the same metrics, which are then compiled once.
        by_metrics = {
            id(evaluation.metrics): Evaluator(model, evaluation.metrics, mesh)
            for evaluation in evaluations.values()
        }
        self._evaluators = {
            name: by_metrics[id(evaluation.metrics)] for name, evaluation in evaluations.items()
        }

    def largest_output(self, state: TrainState) -> float:
        """The largest absolute output for the first batch of the first evaluation; NaN if any is.

        The first call compiles the evaluation, so that its errors are found before training.
        """
        (batch,) = parallel.global_batches([self._first_rows], self._mesh)
        return self._evaluators[self._first].largest_output(state.variables, batch)

    @functools.cached_property
    def _first_rows(self) -> Mapping[str, np.ndarray]:
        return next(self._evaluations[self._first].examples.batches(self._report))

    def scores(self, state: TrainState) -> dict[str, float]:
        """All scores of the network, as `NAME/score`, and of its EMA, as `NAME_ema/score`."""
        return {
            f"{name}{suffix}/{score}": value
            for name, evaluator in self._evaluators.items()
            for suffix, variables in _networks(state).items()
            for score, value in evaluator.evaluate(variables, self._batches(name)).items()
        }

    def best_score(self, scores: Mapping[str, float]) -> float:
        """The score of a checkpoint: the higher one of the network and of its EMA; NaN counts as 0.

        Early in a run the network has the higher score, since the EMA lags behind.

        Args:
          scores: from `scores`.
        """
        found = [scores.get(f"{self._first}{end}/{self._best_by}", 0.0) for end in ("", _EMA)]
        return max(0.0 if math.isnan(score) else score for score in found)

    def compare(self, state: TrainState) -> dict[str, Any]:
        """Evaluates both structures of the network and of its EMA.

        Returns:
          The result of the first evaluation: that of `Evaluator.compare`, and in `ema` the same for
          the EMA, if there is one. The results of the other evaluations are in `evaluations`, by
          name. `best_by` is the name of the score that decides which checkpoint is the best.
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
        return result

    def _batches(self, name: str) -> Iterator[Batch]:
        """The batches of an evaluation."""
        rows = self._evaluations[name].examples.batches(self._report)
        return parallel.global_batches(rows, self._mesh)


def _networks(state: TrainState) -> dict[str, Variables]:
    """The variables to evaluate, by the suffix of the evaluation's name."""
    return {"": state.variables} | ({} if state.ema is None else {_EMA: state.ema})
