"""Inert representations of the classes, functions and objects that a PyTorch file names."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from replk_jax.io.text import brief

_MODULE_ATTRIBUTES = frozenset(("_parameters", "_buffers", "_modules"))


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Placeholder:
    """Represents a class or function that a file names, or an object created from one.

    It is inert, like a string: nothing is imported or called.

    Attributes:
      module: of the class or function.
      name: qualified name of the class or function.
      args: the arguments of the call in the file; None for the class or function itself.
      state: the attributes of the object in the file, usually a dict.
      items: the items of a list.
      entries: the entries of a dict.
      called: whether the file requests a call other than of functions that only make data.
      omitted: why the parts of this object were left out; None if they were not.
    """

    module: str
    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None
    called: bool = False
    items: list[Any] = dataclasses.field(default_factory=list)
    entries: dict[Any, Any] = dataclasses.field(default_factory=dict)
    omitted: str | None = None

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_module(self) -> bool:
        """Whether this represents a `torch.nn.Module`."""
        return isinstance(self.state, dict) and self.state.keys() >= _MODULE_ATTRIBUTES

    def brief_parts(self) -> tuple[str, Sequence[Any] | None]:
        """As `HasParts` has it."""
        if self.omitted is not None:
            return f"{self.path}(left out: {self.omitted})", None
        if self.args is None:
            return self.path, None
        return self.path, [*self.args, *filter(None, (self.state, self.items, self.entries))]

    def __repr__(self) -> str:
        return brief(self)


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class UnreadableTensor(Placeholder):
    """Represents a tensor that is not stored as an array of numbers.

    `args` and `state` are those in the file.

    Attributes:
      kind: of the tensor, as an adjective or a phrase after "is".
      remedy: what to do in PyTorch, a sentence.
    """

    kind: str = ""
    remedy: str = ""

    def brief_parts(self) -> tuple[str, Sequence[Any] | None]:
        return f"UnreadableTensor({self.kind})", None
