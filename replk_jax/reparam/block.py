"""What a kind of block is, to whoever merges it."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from replk_jax.reparam.algebra import Affine, Linear

Parts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Form:
    """The names of a block's parts, separated by spaces.

    Attributes:
      parts: names that must be there.
      optional: names that may be there, as shell-style patterns.
    """

    parts: str = ""
    optional: str = ""

    def faults(self, names: set[str]) -> list[str]:
        """What is missing or unknown, in words; nothing if `names` are of this form."""
        parts, optional = self.parts.split(), self.optional.split()
        missing = [part for part in parts if part not in names]
        unknown = [
            name
            for name in sorted(names - set(parts))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in optional)
        ]
        found = (("missing", missing), ("not known here:", unknown))
        return [f"{fault} {', '.join(those)}" for fault, those in found if those]


@dataclasses.dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
      name: of the kind.
      marks: names separated by spaces. A node with a child of any of them is such a block; with
        `exact`, a node that has them all and no other child.
      training: forms of its training-time structure.
      merge: makes the merged block of its parts, which are merged themselves.
      merged: forms of its merged structure, if that has one of the marks.
      exact: see `marks`.
      parallel: whether it is a block of parallel branches; `merge_branches` merges these.
      has_norms: whether there are batch norms somewhere in its training-time structure; a node
        without their statistics is taken for a merged one.
      check: raises ValueError for a node that is not as names alone can tell.
      is_one: tells by more than the names of a node's children whether it is such a block, in
        place of `marks`.
    """

    name: str
    marks: str
    training: tuple[Form, ...]
    merge: Callable[[Parts], Any]
    merged: tuple[Form, ...] = ()
    exact: bool = False
    parallel: bool = False
    has_norms: bool = True
    check: Callable[[Parts], None] = lambda node: None
    is_one: Callable[[Parts], bool] | None = None

    def recognises(self, node: Parts) -> bool:
        """Whether a node is such a block, whole or not."""
        if self.is_one is not None:
            return self.is_one(node)
        marks = set(self.marks.split())
        return set(node) == marks if self.exact else not marks.isdisjoint(node)

    def is_training(self, node: Any) -> bool:
        """Checks a node; returns whether it is in the training-time structure.

        Raises:
          ValueError: parts that are missing, foreign, or without their statistics.
        """
        names = set(node) if isinstance(node, Mapping) else set()
        training = not self.has_norms or has_statistics(node)
        forms = self.training if training else self.merged
        if all(form.faults(names) for form in forms):
            if not training and not all(form.faults(names) for form in self.training):
                raise ValueError("missing the running statistics of its batch norms (batch_stats).")
            nearest = min((form.faults(names) for form in forms or self.training), key=_length)
            raise ValueError(f"{'; '.join(nearest)}.")
        self.check(node)
        return training


def arrays(node: Parts) -> set[str]:
    """The names of a node's children that are arrays, and not nodes themselves."""
    return {name for name, child in node.items() if not isinstance(child, Mapping | tuple)}


def has_statistics(node: Any) -> bool:
    """Whether there are running statistics somewhere below a node."""
    if not isinstance(node, Mapping):
        return False
    return not {"mean", "var"}.isdisjoint(arrays(node)) or any(map(has_statistics, node.values()))


def _length(faults: list[str]) -> int:
    return len(" ".join(faults))


# --- Merged parts ------------------------------------------------------------------------


def conv_of(parts: Parts, name: str, *, biased: bool = True) -> Linear:
    """The convolution that the part `name` is, or has by the name of "conv" and nothing else.

    Args:
      parts: of a block, merged.
      name: of the part.
      biased: whether it must have a bias, as what had a batch norm behind it has.

    Raises:
      ValueError: it is not there, or something else.
    """
    part = _child(parts, name)
    if isinstance(part, Mapping):
        name, part = f"{name}/conv", node_of(parts, name, Form("conv"))["conv"]
    if not isinstance(part, Linear) or part.kernel.ndim != 4:
        raise ValueError(f"{name}: expected the 4 dimensions of a convolution's kernel.")
    if biased and part.bias is None:
        raise ValueError(f"{name}: missing bias, or a batch norm behind it.")
    return part


def norm_of(parts: Parts, name: str) -> Affine:
    """The batch norm that the part `name` is.

    Raises:
      ValueError: it is not there, something else, or has no running statistics.
    """
    part = _child(parts, name)
    if not isinstance(part, Affine):
        names = set(part) if isinstance(part, Mapping) else set()
        faults = Form("scale bias mean var").faults(names)
        raise ValueError(f"{name}: {'; '.join(faults)}.")
    return part


def array_of(parts: Parts, name: str) -> Any:
    """The array that the part `name` is.

    Raises:
      ValueError: it is something else.
    """
    if name not in arrays(parts):
        raise ValueError(f"{name}: expected an array, found a part of a network.")
    return parts[name]


def node_of(parts: Parts, name: str, form: Form) -> Parts:
    """The part `name`, which has parts itself.

    Raises:
      ValueError: it has not those of the form.
    """
    part = _child(parts, name)
    faults = form.faults(set(part) if isinstance(part, Mapping) else set())
    if faults:
        raise ValueError(f"{name}: {'; '.join(faults)}.")
    return part


def _child(parts: Parts, name: str) -> Any:
    if name not in parts:
        raise ValueError(f"missing {name}.")
    return parts[name]
