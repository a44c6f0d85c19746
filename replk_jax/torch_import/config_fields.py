"""Reads fields of other libraries' configurations. Errors name the field and its value."""

import math
from collections.abc import Mapping
from typing import Any

from replk_jax.io.text import brief


def whole_number(fields: Mapping[str, Any], name: str) -> int:
    """A positive field.

    Raises:
      ValueError: the field is missing or something else.
    """
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise unexpected(name, value, "a positive whole number")
    return value


def whole_numbers(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A list of positive numbers.

    Raises:
      ValueError: the field is missing or something else.
    """
    value = fields.get(name)
    if not isinstance(value, list | tuple) or any(type(v) is not int or v < 1 for v in value):
        raise unexpected(name, value, "a list of positive whole numbers")
    return tuple(value)


def number(fields: Mapping[str, Any], name: str) -> float:
    """A positive and finite field.

    Raises:
      ValueError: the field is missing or something else.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise unexpected(name, value, "a positive number")
    return value


def flag(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that is True or False.

    Raises:
      ValueError: the field is something else.
    """
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise unexpected(name, value, "True or False")
    return value


def mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field with fields of its own.

    Raises:
      ValueError: the field is missing or something else.
    """
    value = fields.get(name)
    if not isinstance(value, Mapping):
        raise unexpected(name, value, "an object with fields")
    return value


def class_labels(value: Any, name: str) -> list[Any]:
    """The labels of the classes in order, from a list or a dictionary by index.

    Args:
      value: of the field.
      name: of the field.

    Raises:
      ValueError: something else, or indices with gaps.
    """
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, Mapping):
        raise unexpected(name, value, "a list of names, or names by index")
    indices = [str(i) for i in range(len(value))]
    by_index = {str(index): label for index, label in value.items()}
    if by_index.keys() != set(indices):
        raise ValueError(f"the indices of the classes in {name} are not 0, 1, 2 ...")
    return [by_index[index] for index in indices]


def crop_fraction(size: int, resized: int) -> float:
    """The fraction with which `Preprocessing` resizes the shorter side to exactly `resized` pixels.

    Args:
      size: of the crop, in pixels.
      resized: shorter side before the crop, in pixels.

    Raises:
      ValueError: the crop is larger than the image.
    """
    if size > resized:
        raise ValueError(f"a crop of {size} pixels is larger than the resized image, {resized}")
    fraction = size / resized
    while int(size / fraction) < resized:  # the division was rounded up
        fraction = math.nextafter(fraction, 0)
    return fraction


def unexpected(name: str, value: Any, wanted: str) -> ValueError:
    """The error for a field that has another value than `wanted`."""
    return ValueError(f"{name} must be {wanted}; got {brief(value)}")
