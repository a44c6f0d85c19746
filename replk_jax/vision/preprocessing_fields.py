"""The fields of preprocessings: brought into form and checked."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_SIDE = 1 << 14  # an image of so many pixels a side takes a gigabyte

# What brings a field into form (TypeError, ValueError or OverflowError if it makes no sense), and
# what the field must be, in words.
Rule = tuple[Callable[[Any], Any], str]


def check_fields(preprocessing: Any, rules: Mapping[str, Rule]) -> None:
    """Brings the fields of a frozen dataclass into form, in `__post_init__`.

    Args:
      preprocessing: has a field for each rule, with `mean` and `std` among them.
      rules: by name of the field.

    Raises:
      ValueError: a field that makes no sense, or mean and std of different lengths.
    """
    for field, (coerce, wanted) in rules.items():
        value = getattr(preprocessing, field)
        try:
            object.__setattr__(preprocessing, field, coerce(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{field} of a preprocessing must be {wanted}; got {value!r}."
            ) from error
    mean, std = preprocessing.mean, preprocessing.std
    if len(mean) != len(std):
        raise ValueError(
            f"mean and std of a preprocessing must have a value for each channel; got {mean} and "
            f"{std}."
        )


def side(value: Any) -> int:
    """A number of pixels."""
    pixels = operator.index(value)
    if isinstance(value, bool) or not 1 <= pixels <= LARGEST_SIDE:
        raise ValueError
    return pixels


def finite_numbers(values: Any) -> tuple[float, ...]:
    """Finite numbers."""
    if isinstance(values, str) or any(isinstance(value, (str, bool)) for value in values):
        raise TypeError
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _mean(value: Any) -> tuple[float, ...]:
    numbers = finite_numbers(value)
    if len(numbers) not in (1, 3):
        raise ValueError
    return numbers


def _std(value: Any) -> tuple[float, ...]:
    numbers = _mean(value)
    if min(numbers) <= 0:
        raise ValueError
    return numbers


SIDE: Rule = (side, f"a whole number from 1 to {LARGEST_SIDE}")
MEAN: Rule = (_mean, "1 or 3 numbers")
STD: Rule = (_std, "1 or 3 positive numbers")
