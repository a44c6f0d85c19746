"""Evaluation on a whole data set; every example counts once."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding

import replk_jax
from replk_jax.inference.bounded_jit import BoundedJit
from replk_jax.models.network import Network
from train.engine import parallel
from train.engine.step import Variables
from train.engine.task import Batch, Metrics, Table
from train.errors import RunError

# Programs that are kept of each computation; there is one for each shape of batches.
_KEPT_PROGRAMS = 128
_NOT_MERGED = "its blocks have no merged structure"


class _Totals(NamedTuple):
    """The number of examples of one or more batches, and their statistics."""

    examples: Any = 0
    statistics: Any = None


class Evaluator:
    """Evaluates a network on batches, in its training-time structure and re-parameterized.

    Batches come from `parallel.global_batches`. A program is compiled for each shape of batches; of
    each of four computations, the 128 programs that were used last are kept. Variables may be
    sharded, see `parallel.state_sharding`.

    Args:
      model: in its training-time structure. `evaluate` takes a re-parameterized one as well.
      metrics: to compute.
      mesh: of the devices.
    """

    def __init__(self, model: Network, metrics: Metrics, mesh: Mesh):
        replicated, sharded = parallel.replicated(mesh), parallel.batch_sharding(mesh)
        # In float32, so that only re-parameterization makes a difference.
        precise = model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))
        merged = precise.clone(deploy=True)

        def compiled(function: Callable, *in_shardings: NamedSharding) -> BoundedJit:
            return BoundedJit(
                function, _KEPT_PROGRAMS, in_shardings=in_shardings, out_shardings=replicated
            )

        def predict(network: Network, variables: Variables, batch: Batch) -> Any:
            return metrics.predict(partial(network.apply, variables), batch)

        def checked(network: Network, variables: Variables, batch: Batch, predictions: Any) -> Any:
            return metrics.checked(partial(network.apply, variables), batch, predictions)

        def totals(predictions: Any, batch: Batch) -> _Totals:
            return _Totals(batch["mask"].sum(), metrics.statistics(predictions, batch))

        def evaluation_of(network: Network) -> BoundedJit:
            def evaluate(variables: Variables, batch: Batch) -> tuple[_Totals, jax.Array]:
                # One program for both results: `largest_output` needs no compilation of its own.
                predictions = predict(network, variables, batch)
                largest = _largest(checked(network, variables, batch, predictions), batch["mask"])
                return totals(predictions, batch), largest

            return compiled(evaluate, replicated, sharded)

        def compare(variables: Variables, merged_variables: Variables, batch: Batch):
            expected = predict(precise, variables, batch)
            actual = predict(merged, merged_variables, batch)
            differences = jax.tree.map(
                jnp.subtract,
                checked(merged, merged_variables, batch, actual),
                checked(precise, variables, batch, expected),
            )
            difference = _largest(differences, batch["mask"])
            structures = {"training": totals(expected, batch), "merged": totals(actual, batch)}
            return structures, difference

        self._metrics = metrics
        self._evaluate, self._evaluate_precisely = evaluation_of(model), evaluation_of(precise)
        self._mergeable = model.mergeable
        self._replicate = jax.jit(lambda variables: variables, out_shardings=replicated)
        self._compare = compiled(compare, replicated, replicated, sharded)
        self._predict = compiled(partial(predict, model), replicated, sharded)
        self._deploy = model.deploy

    def evaluate(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of the metrics, and the number of `examples`.

        Raises:
          RunError: there are no examples, because no image could be read.
        """
        return self._scores(self._evaluate_by(self._evaluate, self._replicate(variables), batches))

    def largest_output(self, variables: Variables, batch: Batch) -> float:
        """The largest absolute value of any checked prediction; NaN if any is NaN."""
        return float(self._evaluate(self._replicate(variables), batch)[1])

    def check(self, variables: Variables, batch: Batch) -> None:
        """Evaluates one batch, to find what is wrong with the metrics before training.

        Raises:
          ValueError: the scores have no `best_by`.
        """
        totals, _ = self._evaluate(self._replicate(variables), batch)
        total = self._add(_Totals(), totals)
        if not total.examples:
            return  # images that cannot be read are reported elsewhere
        scores = self._metrics.scores(total.statistics, total.examples)
        if self._metrics.best_by not in scores:
            raise ValueError(
                f"best_by={self._metrics.best_by!r} is none of the scores {', '.join(scores)}."
            )

    def predictions(self, variables: Variables, batches: Iterable[Batch]) -> Iterator[Any]:
        """The predictions for all examples of each batch, as NumPy arrays."""
        variables = self._replicate(variables)
        for batch in batches:
            yield jax.device_get(self._predict(variables, batch))

    def compare(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
        """Evaluates both structures on the same batches, in float32 at the highest precision.

        Returns:
          The scores of both structures, `training` and `merged`, and the `largest_difference` of
          any output of any example. For a network that cannot be re-parameterized, `training` and
          the reason, `not_merged`; for one that is re-parameterized already, `merged`. If the
          metrics have a table, `table` is that of `training`, or else of `merged`.

        Raises:
          RunError: see `evaluate`.
        """
        variables = self._replicate(variables)
        with jax.default_matmul_precision("highest"):
            if self._deploy or not self._mergeable:
                only = self._evaluate_by(self._evaluate_precisely, variables, batches)
                if self._deploy:
                    return {"merged": self._scores(only), **self._table(only)}
                return {
                    "training": self._scores(only),
                    "not_merged": _NOT_MERGED,
                    **self._table(only),
                }
            merged_variables = jax.jit(replk_jax.reparameterize)(variables)
            total, largest = {"training": _Totals(), "merged": _Totals()}, 0.0
            for batch in batches:
                more, difference = self._compare(variables, merged_variables, batch)
                total = {name: self._add(total[name], more[name]) for name in total}
                largest = np.maximum(largest, difference)  # keeps a NaN
        return {
            **{structure: self._scores(part) for structure, part in total.items()},
            "largest_difference": float(largest),
            **self._table(total["training"]),
        }

    def _evaluate_by(
        self, evaluate: Callable, variables: Variables, batches: Iterable[Batch]
    ) -> _Totals:
        each = (evaluate(variables, batch)[0] for batch in batches)
        return functools.reduce(self._add, each, _Totals())

    def _table(self, total: _Totals) -> dict[str, Table]:
        """The table of the metrics, if they have one."""
        table = self._metrics.table
        return {} if table is None else {"table": table(total.statistics, total.examples)}

    def _scores(self, total: _Totals) -> dict[str, float]:
        if not total.examples:
            raise RunError("None of the images to evaluate on could be read.")
        scores = self._metrics.scores(total.statistics, total.examples)
        return {**scores, "examples": total.examples}

    def _add(self, total: _Totals, more: _Totals) -> _Totals:
        examples, statistics = jax.device_get(more)
        return _Totals(
            total.examples + int(examples), self._metrics.add(total.statistics, statistics)
        )


def require_finite_scores(result: Mapping[str, Any]) -> None:
    """Raises RunError if scores in the result of an evaluation are NaN or infinite; names them."""
    flat = flatten_dict(dict(result), sep=".")
    bad = [k for k, v in flat.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise RunError(
            f"Scores are NaN or infinite ({', '.join(bad)}), because outputs of the network are, "
            "for some images at least, or no image has a label that counts. Evaluate an earlier "
            "checkpoint, or check the data set."
        )


def _largest(tree: Any, mask: jax.Array) -> jax.Array:
    """The largest absolute value in floating-point arrays (N, ...), where `mask` (N,) is True.

    0 without such arrays.
    """

    def largest_in(array: jax.Array) -> jax.Array:
        counts = mask.reshape(-1, *(1,) * (array.ndim - 1))
        size = jnp.where(counts, jnp.abs(array), 0)
        # A maximum across devices may ignore a NaN.
        return jnp.where(jnp.isnan(size).any(), jnp.nan, size.max())

    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.zeros(()), *map(largest_in, leaves)]).max()
