"""Parts of composite networks, such as necks and heads: described as plain data, like networks."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import flax.linen as nn

from replk_jax.models.description import joined
from replk_jax.models.layers import ReparameterizableModule
from replk_jax.models.stored import StoredField

PartClass = TypeVar("PartClass", bound="type[NetworkPart]")

_PARTS: dict[str, type["NetworkPart"]] = {}  # the registered classes by name


class NetworkPart(ReparameterizableModule, kw_only=True):
    """A neck or a head of a composite network, or a part of one.

    A subclass is decorated with `register_part`. Its fields may be parts themselves.

    Attributes:
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    # The fields that a description stores, and their encodings.
    stored_fields: ClassVar[Mapping[str, StoredField]] = {}
    # The fields that a part takes from the network, or from the part that contains it.
    shared_fields: ClassVar[tuple[str, ...]] = (
        "deploy",
        "dtype",
        "param_dtype",
        "implementation",
    )
    class_key: ClassVar[str] = "part"  # of the name of the class in a description

    def __post_init__(self):
        for name in self.stored_fields:
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(self, name, tuple(value))
        share_fields(self)
        super().__post_init__()

    @nn.nowrap
    def describe(self) -> dict[str, Any]:
        """The part as plain data for JSON, from which `from_description` rebuilds it."""
        fields = {
            name: stored.encode(getattr(self, name)) for name, stored in self.stored_fields.items()
        }
        return {self.class_key: type(self).__name__, **fields}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Rebuilds a part from the result of `describe`.

        Raises:
          KeyError, TypeError, ValueError: an invalid description, or one of another class.
        """
        fields = dict(description)
        part = _PARTS[fields.pop(cls.class_key)]
        if not issubclass(part, cls):
            raise ValueError(f"{part.__name__} is no {cls.__name__}")
        for name, value in fields.items():
            stored = part.stored_fields[name]
            if not stored.is_valid(value):
                raise ValueError(f"{name} cannot be {value!r}")
            fields[name] = stored.decode(value)
        return part(**fields)

    @nn.nowrap
    def in_words(self) -> str:
        """The part and the fields that a description stores, on one line."""
        fields = (f"{name} {_in_words(getattr(self, name))}" for name in self.stored_fields)
        return f"{type(self).__name__} ({', '.join(fields)})"

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        for name, stored in self.stored_fields.items():
            value = getattr(self, name)
            if isinstance(value, NetworkPart):
                value.check_fields()
            elif not stored.is_valid(stored.encode(value)):
                raise ValueError(f"{name} of a {type(self).__name__} cannot be {value!r}.")


def _in_words(value: Any) -> str:
    return value.in_words() if isinstance(value, NetworkPart) else joined(value)


def register_part(part: PartClass) -> PartClass:
    """A class decorator that registers a part for `NetworkPart.from_description`, by its name.

    Raises:
      ValueError: a class of another module has that name.
    """
    known = _PARTS.setdefault(part.__name__, part)
    if known.__module__ != part.__module__:
        raise ValueError(f"There is a part {part.__name__} already, in {known.__module__}.")
    _PARTS[part.__name__] = part
    return part


def stored_part(kind: type[NetworkPart], *, optional: bool = False) -> StoredField:
    """The encoding of a field that is a part.

    Args:
      kind: the class of the part, or a base of it.
      optional: whether the field may be None.
    """
    return StoredField(
        lambda value: isinstance(value, Mapping) or (optional and value is None),
        encode=lambda part: part.describe() if isinstance(part, NetworkPart) else part,
        decode=lambda description: description and kind.from_description(description),
    )


def share_fields(module: nn.Module) -> None:
    """Replaces the parts among the fields of a module by copies with the fields of the module.

    Each part takes those in its `shared_fields`. For `__post_init__`, before that of the base.

    Args:
      module: a composite network or a part.
    """
    for field in dataclasses.fields(module):
        part = getattr(module, field.name, None)
        if field.name != "parent" and isinstance(part, NetworkPart):
            shared = {name: getattr(module, name) for name in part.shared_fields}
            setattr(module, field.name, part.clone(**shared))


def own_fields(part: type[NetworkPart]) -> set[str]:
    """The names of the fields of a class of parts that it does not share with its network."""
    others = {*part.shared_fields, "parent", "name"}
    return {field.name for field in dataclasses.fields(part)} - others
