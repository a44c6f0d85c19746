"""A model as plain data, to be stored beside its variables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from replk_jax.models import registry


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


def _are_stages(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple) and all(type(stage) is int for stage in value)
    )


# What is stored of a model besides its family and architecture, if it has the field, and what
# each may be. What only training and the way of computing depend on is not.
_FIELDS = {
    "deploy": _is_bool,
    "norm_intermediate_features": _is_bool,
    "num_classes": _is_count,
    "out_indices": _are_stages,
    "output_stride": _is_count,
    "param_dtype": lambda value: value in ("float32", "float64", "bfloat16", "float16"),
}
# Building so many takes seconds; the deepest registered network has 50.
MOST_LAYERS = 200


def describe(model: nn.Module) -> dict[str, Any]:
    """What `from_description` builds the model from again, as JSON can hold it.

    Without the type and the implementation of the computation, stochastic depth, dropout and
    rematerialisation.
    """
    return {
        "family": type(model).__name__,
        "architecture": dataclasses.asdict(model.architecture),
        **{name: getattr(model, name) for name in _FIELDS if hasattr(model, name)},
        "param_dtype": jnp.dtype(model.param_dtype).name,
    }


def from_description(description: Mapping[str, Any]) -> nn.Module:
    """Builds the model that `describe` described, with the default type of computation.

    Raises:
      ValueError: something else, whatever it may be.
    """
    families = {family.__name__: kind for kind, family in registry.FAMILIES.items()}
    try:
        fields = dict(description)
        family, architecture = fields.pop("family"), dict(fields.pop("architecture"))
        for name, value in fields.items():
            if not _FIELDS[name](value):
                raise ValueError(f"{name} cannot be {value!r}")
        if sum(architecture["layers"]) > MOST_LAYERS:
            raise ValueError(f"layers cannot be {architecture['layers']}")
        fields["param_dtype"] = jnp.dtype(fields["param_dtype"])
        model = registry.create_model(families[family](**architecture), **fields)
        model.check_fields()
        return model
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"This describes no model of this version: {reason[:200]}.") from error


def architecture_in_words(model: nn.Module) -> str:
    """The fields of a model's architecture on one line."""
    fields = dataclasses.asdict(model.architecture).items()
    return ", ".join(f"{field} {joined(value)}" for field, value in fields)


def joined(value: Any) -> str:
    """Numbers as the tables have them: 31-29-27-13."""
    if not isinstance(value, tuple):
        return str(value)
    return "-".join(map(joined, value)) if value else "none"
