"""What stands for the classes, functions and objects that a PyTorch file names."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from replk_jax.io.text import brief

_MODULE_ATTRIBUTES = frozenset(("_parameters", "_buffers", "_modules"))


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Placeholder:
    """What stands for a class or a function that a file names, or for an object made of one.

    It is as inert as a string: nothing of that name is imported or called.

    Attributes:
      module: of the class or function.
      name: of the class or function, qualified.
      args: what it would have been called with; None for the class or function itself.
      state: what the object would have been given as its attributes, mostly a dict.
      items: what would have been appended to it, if it was a list.
      entries: what would have been stored in it, if it was a dict.
      called: whether the file wants a function called that it chose itself, instead of one
        that is known to do nothing but make data.
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
        """Whether this stands for a `torch.nn.Module`."""
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
    """Stands for a tensor that is not an array of numbers in the file.

    `args` and `state` are what the file has for it.

    Attributes:
      kind: of the tensor, as an adjective or a phrase after "is".
      remedy: what to do in PyTorch, a sentence.
    """

    kind: str = ""
    remedy: str = ""

    def brief_parts(self) -> tuple[str, Sequence[Any] | None]:
        return f"UnreadableTensor({self.kind})", None
