"""How the fields of a network are stored in its description, which is plain data for JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from replk_jax.models.architecture import Architecture

# Building so many takes seconds; the deepest registered network has 50.
MOST_LAYERS = 200
_PARAM_DTYPES = ("float32", "float64", "bfloat16", "float16")


class StoredField(NamedTuple):
    """A field of a network in a description.

    Attributes:
      is_valid: whether a stored value, which may be anything, is one of this field.
      encode: the value of the field, as plain data.
      decode: the reverse of `encode`.
    """

    is_valid: Callable[[Any], bool]
    encode: Callable[[Any], Any] = lambda value: value
    decode: Callable[[Any], Any] = lambda value: value


def _are_indices(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(index) is int for index in value)


FLAG = StoredField(lambda value: isinstance(value, bool))
COUNT = StoredField(lambda value: type(value) is int and value > 0)
COUNT_OR_NONE = StoredField(lambda value: value is None or COUNT.is_valid(value))
INDICES_OR_NONE = StoredField(lambda value: value is None or _are_indices(value))
PARAM_DTYPE = StoredField(
    lambda value: value in _PARAM_DTYPES,
    encode=lambda dtype: jnp.dtype(dtype).name,
    decode=jnp.dtype,
)


def stored_architecture(kind: type[Architecture]) -> StoredField:
    """The fields of an architecture.

    Args:
      kind: its class, a dataclass.
    """

    def decode(fields: Mapping[str, Any]) -> Architecture:
        if sum(fields["layers"]) > MOST_LAYERS:
            raise ValueError(f"layers cannot be {fields['layers']}")
        return kind(**fields)

    return StoredField(lambda value: isinstance(value, Mapping), dataclasses.asdict, decode)
