"""How good a network is, over a whole data set, every example counted once."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

import replk_jax
from train.engine import parallel
from train.engine.step import Batch, Variables
from train.errors import RunError

_NOT_MERGED = "its blocks have no merged structure"


def add_in_64_bits(total: Any, more: Any) -> Any:
    """The sum of two trees of arrays of numbers; the first may be None."""

    def in_64_bits(array: np.ndarray) -> np.ndarray:
        # NumPy alone would not take bfloat16 for a floating type.
        return array.astype(np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else np.int64)

    more = jax.tree.map(in_64_bits, more)
    return more if total is None else jax.tree.map(np.add, total, more)


@dataclasses.dataclass(frozen=True)
class Measure:
    """What tells how good a network is at its task: all that an evaluation need not know.

    A batch is a dictionary of arrays (N, ...), with `mask`, bool (N,): which examples count.

    Attributes:
      inputs: batch -> what the network takes, float32 (N, H, W, C).
      statistics: (what the network gives, batch) -> a tree of arrays of any shapes, computed on the
        devices: usually sums over the examples that count.
      scores: (the statistics of all batches, the number of examples) -> {name: a number}.
      best_by: the score that counts, by which the best checkpoint is found, a share of 1; the
        higher, the better.
      add: (the statistics of the batches before, None for the first; those of a batch, as NumPy
        arrays) -> those of all together. Not sums, where each example is to be seen by itself.
    """

    inputs: Callable[[Batch], jax.Array]
    statistics: Callable[[Any, Batch], Any]
    scores: Callable[[Any, int], dict[str, float]]
    best_by: str
    add: Callable[[Any, Any], Any] = add_in_64_bits


class _Part(NamedTuple):
    """What is found of one batch, or of several."""

    examples: Any = 0
    statistics: Any = None


class Evaluator:
    """Runs a model over batches, alone or beside its re-parameterized self.

    The batches are as from `parallel.global_batches`. Variables may lie in parts on the devices, as
    `parallel.state_sharding` leaves them.

    Args:
      model: in its training-time structure; for `evaluate` alone, in either.
      measure: what tells how good it is.
      mesh: of the devices.
    """

    def __init__(self, model: nn.Module, measure: Measure, mesh: Mesh):
        whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
        # So that what is left is the difference of the structures.
        precise = model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))
        merged = precise.clone(deploy=True)

        def part(outputs: Any, batch: Batch) -> _Part:
            return _Part(batch["mask"].sum(), measure.statistics(outputs, batch))

        def evaluation_of(network: nn.Module) -> Callable:
            def evaluate(variables: Variables, batch: Batch) -> tuple[_Part, jax.Array]:
                # Both at once, so that to try a state compiles nothing more.
                outputs = network.apply(variables, measure.inputs(batch))
                return part(outputs, batch), _largest(outputs, batch["mask"])

            return jax.jit(evaluate, in_shardings=(whole, split), out_shardings=whole)

        def compare(variables: Variables, merged_variables: Variables, batch: Batch):
            inputs = measure.inputs(batch)
            expected = precise.apply(variables, inputs)
            actual = merged.apply(merged_variables, inputs)
            difference = _largest(jax.tree.map(jnp.subtract, actual, expected), batch["mask"])
            return {"training": part(expected, batch), "merged": part(actual, batch)}, difference

        self._measure = measure
        self._evaluate, self._evaluate_precisely = evaluation_of(model), evaluation_of(precise)
        self._mergeable = model.mergeable
        self._whole = jax.jit(lambda variables: variables, out_shardings=whole)
        self._compare = jax.jit(compare, in_shardings=(whole, whole, split), out_shardings=whole)

    def evaluate(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, float]:
        """The scores of the measure, and `examples`, of how many.

        Raises:
          RunError: of none; no image could be read.
        """
        return self._evaluate_by(self._evaluate, self._whole(variables), batches)

    def largest_output(self, variables: Variables, batch: Batch) -> float:
        """The largest size of any output of any example; NaN where one is NaN."""
        return float(self._evaluate(self._whole(variables), batch)[1])

    def compare(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
        """Both structures on the same batches: `training`, `merged`, `largest_difference`.

        The first two are as from `evaluate`; the last is that of any output of any example. For a
        network that cannot be re-parameterized, `training` and, in words, why `not_merged`.
        Computed in float32, products as well, regardless of what the model trains in.

        Raises:
          RunError: as `evaluate`.
        """
        variables = self._whole(variables)
        with jax.default_matmul_precision("highest"):
            if not self._mergeable:
                scores = self._evaluate_by(self._evaluate_precisely, variables, batches)
                return {"training": scores, "not_merged": _NOT_MERGED}
            merged_variables = jax.jit(replk_jax.reparameterize)(variables)
            total, largest = {"training": _Part(), "merged": _Part()}, 0.0
            for batch in batches:
                parts, difference = self._compare(variables, merged_variables, batch)
                total = {name: self._add(total[name], part) for name, part in parts.items()}
                largest = np.maximum(largest, difference)  # keeps a NaN
        return {
            **{structure: self._scores(part) for structure, part in total.items()},
            "largest_difference": float(largest),
        }

    def _evaluate_by(
        self, evaluate: Callable, variables: Variables, batches: Iterable[Batch]
    ) -> dict[str, float]:
        parts = (evaluate(variables, batch)[0] for batch in batches)
        return self._scores(functools.reduce(self._add, parts, _Part()))

    def _scores(self, total: _Part) -> dict[str, float]:
        if not total.examples:
            raise RunError("None of the images that are to be evaluated could be read.")
        scores = self._measure.scores(total.statistics, total.examples)
        return {**scores, "examples": total.examples}

    def _add(self, total: _Part, more: _Part) -> _Part:
        examples, statistics = jax.device_get(more)
        return _Part(
            total.examples + int(examples), self._measure.add(total.statistics, statistics)
        )


def require_finite_scores(result: Mapping[str, Any]) -> None:
    """Raises RunError, naming them, if numbers in the result of an evaluation are not finite."""
    flat = flatten_dict(result, sep=".")
    bad = [k for k, v in flat.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise RunError(
            f"The evaluation gives NaN or infinite values ({', '.join(bad)}): so does the network, "
            "for some of the images at least. Evaluate an earlier checkpoint."
        )


def _largest(tree: Any, mask: jax.Array) -> jax.Array:
    """The largest size in arrays (N, ...), over the examples that count."""

    def of_leaf(array: jax.Array) -> jax.Array:
        counts = mask.reshape(-1, *(1,) * (array.ndim - 1))
        size = jnp.where(counts, jnp.abs(array), 0)
        # A maximum across devices may lose a NaN to a number.
        return jnp.where(jnp.isnan(size).any(), jnp.nan, size.max())

    return jnp.stack([of_leaf(leaf) for leaf in jax.tree.leaves(tree)]).max()
