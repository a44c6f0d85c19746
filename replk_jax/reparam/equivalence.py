"""Compares the outputs of the merged and the training-time structure of a model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.reparam.transform import reparameterize


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """The differences between the outputs of both structures.

    Attributes:
      max_abs: the largest absolute difference of any output.
      max_rel: the largest absolute difference of an output over its largest absolute value.
    """

    max_abs: float
    max_rel: float


def check_equivalence(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> Equivalence:
    """Runs both structures in eval mode on the same images and compares their outputs.

    Products are computed in full float32, without TF32 and bfloat16, so that the differences on an
    accelerator are those of the structures. With a 16-bit `dtype` they include the rounding of the
    activations. A freshly initialised model is not a valid test: its logits equal the bias of the
    classifier for every image, even if the merge is wrong.

    Args:
      model: in its training-time structure (`deploy=False`). What its method `comparable` returns
        is compared, as of a `Network`; without such a method, what the model returns.
      variables: of the trained model.
      images: (N, H, W, C), normalised.

    Raises:
      ValueError: a model in its merged structure.
    """
    if model.deploy:
        raise ValueError("check_equivalence takes the training-time model; got deploy=True.")
    merged = model.clone(deploy=True)
    with jax.default_matmul_precision("highest"):
        expected = jax.tree.leaves(_outputs(model)(variables, images))
        actual = jax.tree.leaves(_outputs(merged)(jax.jit(reparameterize)(variables), images))
    differences = [jnp.max(jnp.abs(a - e)) for a, e in zip(actual, expected, strict=True)]
    relative = [
        jnp.where(difference == 0, 0, difference / jnp.max(jnp.abs(e)))
        for difference, e in zip(differences, expected, strict=True)
    ]
    # jnp.max keeps a NaN, which Python's max may lose.
    return Equivalence(float(jnp.max(jnp.stack(differences))), float(jnp.max(jnp.stack(relative))))


def _outputs(model: nn.Module) -> Callable[[Mapping[str, Any], jax.Array], Any]:
    """The compiled function from variables and images to what is compared."""
    method = getattr(type(model), "comparable", None)
    return jax.jit(functools.partial(model.apply, method=method))
