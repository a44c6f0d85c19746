"""Encodings of the fields of a network in its description, which is plain data for JSON."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from replk_jax.models.architecture import LARGEST, Architecture

# A network this deep takes seconds to build; the deepest registered one has 50 layers.
MOST_LAYERS = 200
_PARAM_DTYPES = ("float32", "float64", "bfloat16", "float16")


class StoredField(NamedTuple):
    """The encoding of one field.

    Attributes:
      is_valid: whether a stored value, of any type, can be decoded.
      encode: from the value of the field to plain data.
      decode: the inverse of `encode`.
    """

    is_valid: Callable[[Any], bool]
    encode: Callable[[Any], Any] = lambda value: value
    decode: Callable[[Any], Any] = lambda value: value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_positive(value: Any) -> bool:
    is_short = isinstance(value, list | tuple) and 1 <= len(value) <= MOST_LAYERS
    return is_short and all(_is_number(number) and number > 0 for number in value)


def _are_indices(value: Any) -> bool:
    is_short = isinstance(value, list | tuple) and len(value) <= MOST_LAYERS
    return is_short and all(type(index) is int for index in value)


FLAG = StoredField(lambda value: isinstance(value, bool))
COUNT = StoredField(lambda value: type(value) is int and 1 <= value <= LARGEST)
COUNT_OR_NONE = StoredField(lambda value: value is None or COUNT.is_valid(value))
INDICES_OR_NONE = StoredField(lambda value: value is None or _are_indices(value))
FRACTION = StoredField(lambda value: _is_number(value) and 0 <= value <= 1)
POSITIVE = StoredField(lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = StoredField(lambda value: _is_number(value) and value >= 0)
# A tuple of positive numbers, a list in JSON.
POSITIVES = StoredField(
    _are_positive,
    encode=lambda value: list(value) if isinstance(value, tuple) else value,
    decode=tuple,
)
PARAM_DTYPE = StoredField(
    lambda value: value in _PARAM_DTYPES,
    encode=lambda dtype: jnp.dtype(dtype).name,
    decode=jnp.dtype,
)


def stored_architecture(kind: type[Architecture]) -> StoredField:
    """The encoding of an architecture, by its fields.

    Args:
      kind: the class of the architecture.
    """

    def decode(fields: Mapping[str, Any]) -> Architecture:
        if sum(fields["layers"]) > MOST_LAYERS:
            raise ValueError(f"layers cannot be {fields['layers']}")
        return kind(**fields)

    return StoredField(lambda value: isinstance(value, Mapping), dataclasses.asdict, decode)
