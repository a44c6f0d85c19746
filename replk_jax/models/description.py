"""A model as plain data, to be stored beside its variables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from replk_jax.models import registry

# How a model is computed and trained, which its variables do not depend on.
_NOT_STORED = {
    "architecture", "parent", "name", "dtype", "implementation", "drop_path_rate", "remat"
}  # fmt: skip


def describe(model: nn.Module) -> dict[str, Any]:
    """What `from_description` builds the model from again, as JSON can hold it.

    Without the type and the implementation of the computation, stochastic depth and
    rematerialisation.
    """
    fields = {field.name for field in dataclasses.fields(model)} - _NOT_STORED
    stored = {name: getattr(model, name) for name in sorted(fields)}
    return {
        "family": type(model).__name__,
        "architecture": dataclasses.asdict(model.architecture),
        **stored,
        "param_dtype": jnp.dtype(model.param_dtype).name,
    }


def from_description(description: Mapping[str, Any]) -> nn.Module:
    """Builds the model that `describe` described, with the default type of computation.

    Raises:
      ValueError: something else.
    """
    families = {family.__name__: kind for kind, family in registry.FAMILIES.items()}
    try:
        fields = dict(description)
        architecture = families[fields.pop("family")](**fields.pop("architecture"))
        fields["param_dtype"] = jnp.dtype(fields["param_dtype"])
        return registry.create_model(architecture, **fields)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"This describes no model of this version of replk_jax ({error}): {description}"
        ) from error
