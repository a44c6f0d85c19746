"""How good a network is, over a whole data set, every example counted once."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import replk_jax
from train import parallel
from train.errors import RunError
from train.step import Batch, Variables

_NOT_MERGED = "its blocks have no merged structure"


@dataclasses.dataclass(frozen=True)
class Measure:
    """What tells how good a network is at its task: all that an evaluation need not know.

    A batch is a tree of arrays (N, ...), with `mask`, bool (N,): which examples count.

    Attributes:
      inputs: batch -> what the network takes, float32 (N, H, W, C).
      sums: (what the network gives, batch) -> {name: an array of any shape and number type, summed
        over the examples that count}.
      scores: (those sums over all batches, int64 or float64; the number of examples) -> {name: a
        number}, with `loss`, which must be finite, and `best_by`.
      best_by: the score that counts, by which the best checkpoint is found, a share of 1; the
        higher, the better.
    """

    inputs: Callable[[Batch], jax.Array]
    sums: Callable[[Any, Batch], dict[str, jax.Array]]
    scores: Callable[[Mapping[str, np.ndarray], int], dict[str, float]]
    best_by: str


class Evaluator:
    """Runs a model over batches, alone or beside its re-parameterized self.

    The batches are as from `parallel.global_batches`. Variables may lie in parts on the devices, as
    `parallel.split_state` leaves them.

    Args:
      model: in its training-time structure; for `evaluate` alone, in either.
      measure: what tells how good it is.
      mesh: of the devices.
    """

    def __init__(self, model: nn.Module, measure: Measure, mesh: Mesh):
        whole, split = parallel.replicated(mesh), parallel.split_batch(mesh)
        # So that what is left is the difference of the structures.
        precise = model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))
        merged = precise.clone(deploy=True)

        def sums(outputs: Any, batch: Batch) -> dict[str, jax.Array]:
            return {"examples": batch["mask"].sum(), **measure.sums(outputs, batch)}

        def evaluation_of(network: nn.Module) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
            def evaluate(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
                return sums(network.apply(variables, measure.inputs(batch)), batch)

            return jax.jit(evaluate, in_shardings=(whole, split), out_shardings=whole)

        def compare(variables: Variables, merged_variables: Variables, batch: Batch):
            inputs = measure.inputs(batch)
            expected = precise.apply(variables, inputs)
            actual = merged.apply(merged_variables, inputs)
            difference = _largest_difference(actual, expected, batch["mask"])
            return {"training": sums(expected, batch), "merged": sums(actual, batch)}, difference

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
        variables = self._whole(variables)
        return self._scores(_total(self._evaluate(variables, batch) for batch in batches))

    def compare(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
        """Both structures on the same batches: `training`, `merged`, `largest_difference`.

        The first two are as from `evaluate`; the last is that of any output of any example. For a
        network that cannot be re-parameterized, `training` and, in words, why `not_merged`.
        Computed in float32 at the highest precision, whatever the model trains in.

        Raises:
          RunError: as `evaluate`.
        """
        variables = self._whole(variables)
        with jax.default_matmul_precision("highest"):
            if not self._mergeable:
                sums = _total(self._evaluate_precisely(variables, batch) for batch in batches)
                return {"training": self._scores(sums), "not_merged": _NOT_MERGED}
            merged_variables = jax.jit(replk_jax.reparameterize)(variables)
            sums, largest = None, 0.0
            for batch in batches:
                more, difference = self._compare(variables, merged_variables, batch)
                sums = _add(sums, more)
                largest = np.maximum(largest, difference)  # keeps a NaN
        return {
            **{structure: self._scores(each) for structure, each in sums.items()},
            "largest_difference": float(largest),
        }

    def _scores(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        examples = int(sums["examples"])
        if not examples:
            raise RunError("None of the images that are to be evaluated could be read.")
        return {**self._measure.scores(sums, examples), "examples": examples}


def _largest_difference(actual: Any, expected: Any, mask: jax.Array) -> jax.Array:
    """Of two trees of arrays (N, ...), over the examples that count."""

    def of_leaf(actual: jax.Array, expected: jax.Array) -> jax.Array:
        counts = mask.reshape(-1, *(1,) * (actual.ndim - 1))
        difference = jnp.where(counts, jnp.abs(actual - expected), 0)
        # A maximum across devices may lose a NaN to a number.
        return jnp.where(jnp.isnan(difference).any(), jnp.nan, difference.max())

    return jnp.stack(jax.tree.leaves(jax.tree.map(of_leaf, actual, expected))).max()


def _total(trees: Iterable[Any]) -> Any:
    return functools.reduce(_add, trees, None)


def _add(total: Any, more: Any) -> Any:
    """The sum of two trees of arrays, in 64 bits; the first may be None."""
    more = jax.tree.map(_in_64_bits, jax.device_get(more))
    return more if total is None else jax.tree.map(np.add, total, more)


def _in_64_bits(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if np.issubdtype(array.dtype, np.floating) else np.int64)
