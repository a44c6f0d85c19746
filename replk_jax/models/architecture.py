"""What the architectures of several families check of themselves, in `__post_init__`."""

import operator
from collections.abc import Sequence
from typing import Any


def keep_whole_numbers(
    architecture: Any, per_stage: Sequence[str], single: Sequence[str], optional: Sequence[str] = ()
) -> None:
    """Makes fields of a frozen dataclass positive integers of Python's own, and tuples of them.

    So that architectures compare and print alike, and are hashable.

    Args:
      architecture: whose fields they are.
      per_stage: names of fields with several numbers.
      single: names of fields with one number.
      optional: names of fields with one number, or None.

    Raises:
      ValueError: one that is no positive whole number.
    """
    for field in per_stage:
        object.__setattr__(architecture, field, whole_numbers(field, getattr(architecture, field)))
    for field in (*single, *optional):
        value = getattr(architecture, field)
        if field in single or value is not None:
            (number,) = whole_numbers(field, (value,))
            object.__setattr__(architecture, field, number)


def whole_numbers(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as Python's own integers.

    Raises:
      ValueError: one that is no positive whole number.
    """
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise ValueError(f"{field} must be positive whole numbers; got {values}.")
    return numbers


def expect_entry_per_stage(architecture: Any, fields: Sequence[str]) -> None:
    """Raises ValueError unless the fields have as many entries as one another, and at least one."""
    values = {field: getattr(architecture, field) for field in fields}
    lengths = set(map(len, values.values()))
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{field}={value}" for field, value in values.items())
        *others, last = fields
        raise ValueError(
            f"{', '.join(others)} and {last} must have one entry per stage; got {given}."
        )


def expect_odd(kernel_sizes: Sequence[int], small_kernel: int | None) -> None:
    """Raises ValueError for kernels without a middle."""
    even = [k for k in (*kernel_sizes, small_kernel or 1) if k % 2 == 0]
    if even:
        raise ValueError(f"Kernel sizes must be odd, or the map would shift or shrink; got {even}.")
