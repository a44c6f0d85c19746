"""Evaluation over a whole data set, with every example counted once."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

import replk_jax
from replk_jax.models.network import Network
from train.engine import parallel
from train.engine.step import Variables
from train.engine.task import Batch, Metrics
from train.errors import RunError

_NOT_MERGED = "its blocks have no merged structure"


class _Totals(NamedTuple):
    """Number of examples, and their statistics, of one batch or of several."""

    examples: Any = 0
    statistics: Any = None


class Evaluator:
    """Evaluates a network over batches, in one structure or in both.

    Batches are as from `parallel.global_batches`. Variables may be sharded over the devices as
    `parallel.state_sharding` says.

    Args:
      model: in its training-time structure; for `evaluate` alone, in either.
      metrics: how it is measured.
      mesh: of the devices.
    """

    def __init__(self, model: Network, metrics: Metrics, mesh: Mesh):
        whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
        # In float32, so that the structures differ by the merge alone.
        precise = model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))
        merged = precise.clone(deploy=True)

        def totals(outputs: Any, batch: Batch) -> _Totals:
            return _Totals(batch["mask"].sum(), metrics.statistics(outputs, batch))

        def evaluation_of(network: Network) -> Callable:
            def evaluate(variables: Variables, batch: Batch) -> tuple[_Totals, jax.Array]:
                # One program for both results, so that `largest_output` compiles nothing more.
                outputs = network.apply(variables, metrics.inputs(batch))
                return totals(outputs, batch), _largest(outputs, batch["mask"])

            return jax.jit(evaluate, in_shardings=(whole, split), out_shardings=whole)

        def compare(variables: Variables, merged_variables: Variables, batch: Batch):
            inputs = metrics.inputs(batch)
            expected = precise.apply(variables, inputs)
            actual = merged.apply(merged_variables, inputs)
            difference = _largest(jax.tree.map(jnp.subtract, actual, expected), batch["mask"])
            structures = {"training": totals(expected, batch), "merged": totals(actual, batch)}
            return structures, difference

        self._metrics = metrics
        self._evaluate, self._evaluate_precisely = evaluation_of(model), evaluation_of(precise)
        self._mergeable = model.mergeable
        self._whole = jax.jit(lambda variables: variables, out_shardings=whole)
        self._compare = jax.jit(compare, in_shardings=(whole, whole, split), out_shardings=whole)

    def evaluate(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of the metrics, and the number of `examples`.

        Raises:
          RunError: there are no examples, as none of the images could be read.
        """
        return self._evaluate_by(self._evaluate, self._whole(variables), batches)

    def largest_output(self, variables: Variables, batch: Batch) -> float:
        """The largest absolute value of any output of any example; NaN where one is NaN."""
        return float(self._evaluate(self._whole(variables), batch)[1])

    def compare(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
        """Evaluates both structures on the same batches, in float32 with float32 products.

        Returns:
          `training` and `merged`, each as from `evaluate`, and `largest_difference`, between their
          outputs for any example. For a network that cannot be re-parameterized, `training`, and in
          `not_merged` the reason.

        Raises:
          RunError: as `evaluate`.
        """
        variables = self._whole(variables)
        with jax.default_matmul_precision("highest"):
            if not self._mergeable:
                scores = self._evaluate_by(self._evaluate_precisely, variables, batches)
                return {"training": scores, "not_merged": _NOT_MERGED}
            merged_variables = jax.jit(replk_jax.reparameterize)(variables)
            total, largest = {"training": _Totals(), "merged": _Totals()}, 0.0
            for batch in batches:
                more, difference = self._compare(variables, merged_variables, batch)
                total = {name: self._add(total[name], more[name]) for name in total}
                largest = np.maximum(largest, difference)  # keeps a NaN
        return {
            **{structure: self._scores(part) for structure, part in total.items()},
            "largest_difference": float(largest),
        }

    def _evaluate_by(
        self, evaluate: Callable, variables: Variables, batches: Iterable[Batch]
    ) -> dict[str, float]:
        each = (evaluate(variables, batch)[0] for batch in batches)
        return self._scores(functools.reduce(self._add, each, _Totals()))

    def _scores(self, total: _Totals) -> dict[str, float]:
        if not total.examples:
            raise RunError("None of the images that are to be evaluated could be read.")
        scores = self._metrics.scores(total.statistics, total.examples)
        return {**scores, "examples": total.examples}

    def _add(self, total: _Totals, more: _Totals) -> _Totals:
        examples, statistics = jax.device_get(more)
        return _Totals(
            total.examples + int(examples), self._metrics.add(total.statistics, statistics)
        )


def require_finite_scores(result: Mapping[str, Any]) -> None:
    """Raises RunError, naming them, if scores in the result of an evaluation are not finite."""
    flat = flatten_dict(result, sep=".")
    bad = [k for k, v in flat.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise RunError(
            f"The evaluation gives NaN or infinite values ({', '.join(bad)}): so does the network, "
            "for some of the images at least. Evaluate an earlier checkpoint."
        )


def _largest(tree: Any, mask: jax.Array) -> jax.Array:
    """The largest absolute value in floating-point arrays (N, ...), of examples that count."""

    def of_leaf(array: jax.Array) -> jax.Array:
        counts = mask.reshape(-1, *(1,) * (array.ndim - 1))
        size = jnp.where(counts, jnp.abs(array), 0)
        # A maximum across devices may lose a NaN to a number.
        return jnp.where(jnp.isnan(size).any(), jnp.nan, size.max())

    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([of_leaf(leaf) for leaf in leaves]).max()
