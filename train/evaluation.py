"""Accuracy over a whole data set, every example counted once."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import replk_jax
from replk_jax.preprocessing import normalize
from train import parallel
from train.step import Batch

Variables = dict[str, Any]


_NOT_MERGED = "its blocks have no merged structure"


class Evaluator:
    """Runs a model over batches, alone or beside its re-parameterized self.

    Variables may lie in parts on the devices, as `parallel.split_state` leaves them.

    Args:
      model: in its training-time structure; for `evaluate` alone, in either.
      mean, std: of the images, channel by channel, for values in [0, 1].
      mesh: of the devices.
    """

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
    ):
        whole, split = parallel.replicated(mesh), parallel.split_batch(mesh)
        # So that what is left is the difference of the structures.
        precise = model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))
        merged = precise.clone(deploy=True)

        def evaluation_of(network: nn.Module) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
            def evaluate(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
                return _sums(network.apply(variables, normalize(batch["image"], mean, std)), batch)

            return jax.jit(evaluate, in_shardings=(whole, split), out_shardings=whole)

        def compare(
            variables: Variables, merged_variables: Variables, batch: Batch
        ) -> dict[str, jax.Array]:
            images = normalize(batch["image"], mean, std)
            expected = precise.apply(variables, images)
            actual = merged.apply(merged_variables, images)
            difference = jnp.where(batch["mask"][:, None], jnp.abs(actual - expected), 0)
            # A maximum across devices may lose a NaN to a number.
            largest = jnp.where(jnp.isnan(difference).any(), jnp.nan, difference.max())
            return {
                **{f"training/{k}": v for k, v in _sums(expected, batch).items()},
                **{f"merged/{k}": v for k, v in _sums(actual, batch).items()},
                "largest_difference": largest,
            }

        self._evaluate, self._evaluate_precisely = evaluation_of(model), evaluation_of(precise)
        self._mergeable = model.mergeable
        self._whole = jax.jit(lambda variables: variables, out_shardings=whole)
        self._compare = jax.jit(compare, in_shardings=(whole, whole, split), out_shardings=whole)

    def evaluate(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, float]:
        """`top1`, `top5` (shares of 1), `loss` (mean cross entropy) and `examples`."""
        variables = self._whole(variables)
        sums = _accumulate(lambda batch: self._evaluate(variables, batch), batches)
        return _means(sums, "")

    def compare(self, variables: Variables, batches: Iterable[Batch]) -> dict[str, Any]:
        """Both structures on the same batches: `training`, `merged`, `largest_difference`.

        The first two are as from `evaluate`; the last is that of any logit of any example. For a
        network that cannot be re-parameterized, `training` and, in words, why `not_merged`.
        Computed in float32 at the highest precision, whatever the model trains in.
        """
        variables = self._whole(variables)
        with jax.default_matmul_precision("highest"):
            if not self._mergeable:
                sums = _accumulate(
                    lambda batch: self._evaluate_precisely(variables, batch), batches
                )
                return {"training": _means(sums, ""), "not_merged": _NOT_MERGED}
            merged_variables = jax.jit(replk_jax.reparameterize)(variables)
            sums = _accumulate(
                lambda batch: self._compare(variables, merged_variables, batch), batches
            )
        return {
            "training": _means(sums, "training/"),
            "merged": _means(sums, "merged/"),
            "largest_difference": sums["largest_difference"],
        }


def _sums(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels, mask = batch["label"], batch["mask"]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = (best == labels[:, None]) & mask[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "examples": mask.sum(),
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
    }


def _accumulate(
    run: Callable[[Batch], dict[str, jax.Array]], batches: Iterable[Batch]
) -> dict[str, float]:
    """Sums over the batches, in Python numbers, which do not round; maxima of differences."""
    total: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(run(batch)).items():
            value = value.item()
            if name == "largest_difference":
                total[name] = float(np.maximum(total.get(name, 0.0), value))  # keeps a NaN
            else:
                total[name] = total.get(name, 0) + value
    return total


def _means(sums: dict[str, float], prefix: str) -> dict[str, float]:
    examples = sums[f"{prefix}examples"]
    means = {name: sums[prefix + name] / examples for name in ("top1", "top5", "loss")}
    return {**means, "examples": examples}
