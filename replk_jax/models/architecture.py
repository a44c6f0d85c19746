"""The base of the architectures of all families, which validates their fields.

An architecture is a frozen dataclass. The annotations of its fields declare the valid values:

    layers: PerStage
    small_kernel: OddOrNone = 5
"""

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

# A larger number of channels, classes or pixels is an error, or a malicious description.
LARGEST = 1 << 24


@dataclasses.dataclass(frozen=True)
class Whole:
    """Positive integers, stored as `int`, so that equal architectures hash alike.

    Attributes:
      several: whether the field is a tuple of them.
      per_stage: whether that tuple has one entry per stage.
      odd: whether they must be odd, as kernel sizes must.
      optional: whether the field may be None.
    """

    several: bool = False
    per_stage: bool = False
    odd: bool = False
    optional: bool = False

    def __call__(self, field: str, value: Any) -> Any:
        """Returns the value to store.

        Raises:
          ValueError: not a positive whole number up to `LARGEST`, or even where odd is required.
        """
        if self.optional and value is None:
            return None
        numbers = whole_numbers(field, value if self.several else (value,))
        even = [number for number in numbers if number % 2 == 0]
        if self.odd and even:
            raise ValueError(
                f"Kernel sizes must be odd, or the feature map would shift or shrink; got {even}."
            )
        return numbers if self.several else numbers[0]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of several values."""

    values: Sequence[Any]

    def __call__(self, field: str, value: Any) -> Any:
        """Returns the value.

        Raises:
          ValueError: another value.
        """
        if value not in self.values:
            raise ValueError(f"{field} must be one of {', '.join(self.values)}; got {value!r}.")
        return value


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be True or False; got {value!r}.")
    return value


Count = Annotated[int, Whole()]
Counts = Annotated[tuple[int, ...], Whole(several=True)]
PerStage = Annotated[tuple[int, ...], Whole(several=True, per_stage=True)]
OddPerStage = Annotated[tuple[int, ...], Whole(several=True, per_stage=True, odd=True)]
OddOrNone = Annotated[int | None, Whole(odd=True, optional=True)]
Flag = Annotated[bool, _flag]


class Architecture:
    """Base of the architectures, which are frozen dataclasses.

    A subclass has the fields `layers` (blocks per stage) and `in_channels` (channels of the
    images). It checks in `check` what the annotations cannot express.

    Attributes:
      stem_stride: product of the strides before the first stage.
    """

    # Every subclass is a dataclass; this base is not, since fields would precede the subclass's.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    stem_stride: ClassVar[int]

    layers: tuple[int, ...]
    in_channels: int

    def __post_init__(self):
        checks = _checks(type(self))
        for field, check in checks.items():
            object.__setattr__(self, field, check(field, getattr(self, field)))
        per_stage = [
            f for f, check in checks.items() if isinstance(check, Whole) and check.per_stage
        ]
        _expect_entry_per_stage({field: getattr(self, field) for field in per_stage})
        self.check()

    def check(self) -> None:
        """Raises ValueError for fields that do not fit together."""

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the feature map of each stage."""
        raise NotImplementedError

    @property
    def entry_strides(self) -> tuple[int, ...]:
        """Stride of the first block of each stage, or of the transition before it."""
        return (1, *(2 for _ in self.layers[1:]))


@functools.cache
def _checks(architecture: type[Architecture]) -> dict[str, Callable[[str, Any], Any]]:
    """The check of each annotated field. It maps (field, value) to the value to store."""
    hints = typing.get_type_hints(architecture, include_extras=True)
    return {
        field.name: hints[field.name].__metadata__[0]
        for field in dataclasses.fields(architecture)
        if typing.get_origin(hints[field.name]) is Annotated
    }


def field_types(architecture: type[Architecture]) -> dict[str, type]:
    """The type of each field apart from None; `object` for a union of several."""
    hints = typing.get_type_hints(architecture)
    return {field.name: _plain(hints[field.name]) for field in dataclasses.fields(architecture)}


def _plain(hint: Any) -> type:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        alternatives = [each for each in typing.get_args(hint) if each is not types.NoneType]
        return _plain(alternatives[0]) if len(alternatives) == 1 else object
    return typing.get_origin(hint) or hint


def whole_numbers(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as `int`.

    Raises:
      ValueError: a value that is not a positive whole number up to `LARGEST`.
    """
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = (0,)
    if any(not 1 <= number <= LARGEST for number in numbers):
        raise ValueError(
            f"{field} must be positive whole numbers, at most {LARGEST:,}; got {values}."
        )
    return numbers


def _expect_entry_per_stage(values: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless all fields have the same number of entries, at least one."""
    lengths = set(map(len, values.values()))
    if values and (len(lengths) != 1 or 0 in lengths):
        given = ", ".join(f"{field}={value}" for field, value in values.items())
        *others, last = values
        raise ValueError(
            f"{', '.join(others)} and {last} must have one entry per stage; got {given}."
        )
