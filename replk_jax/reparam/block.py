"""The description of a kind of block, and functions to read its parts."""

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
      parts: the required names.
      optional: shell-style patterns of the optional names.
    """

    parts: str = ""
    optional: str = ""

    def faults(self, names: set[str]) -> list[str]:
        """Describes the missing and the unknown names; empty if `names` match this form."""
        parts, optional = self.parts.split(), self.optional.split()
        missing = [part for part in parts if part not in names]
        unknown = [
            name
            for name in sorted(names - set(parts))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in optional)
        ]
        found = (("missing", missing), ("not known here:", unknown))
        return [f"{fault} {', '.join(parts)}" for fault, parts in found if parts]


@dataclasses.dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
      name: of the kind.
      marks: names, separated by spaces, that identify the block. A node is such a block if any of
        its children has one of these names; with `exact`, if its children have exactly these names.
      training: forms of its training-time structure.
      merge: maps the parts of a block, which are already merged, to the merged block.
      merged: forms of its merged structure, if that contains a mark.
      exact: see `marks`.
      parallel: whether it has parallel branches; `merge_branches` merges only such blocks.
      has_norms: whether its training-time structure contains batch norms; a node without their
        statistics is then treated as merged.
      check: raises ValueError for an invalid node; for conditions beyond the names of its parts.
      predicate: identifies the block instead of `marks`, if the names of its children do not
        suffice.
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
    predicate: Callable[[Parts], bool] | None = None

    def recognises(self, node: Parts) -> bool:
        """Whether a node is such a block, complete or not."""
        if self.predicate is not None:
            return self.predicate(node)
        marks = set(self.marks.split())
        return set(node) == marks if self.exact else not marks.isdisjoint(node)

    def is_training(self, node: Any) -> bool:
        """Checks a node and returns whether it has the training-time structure.

        Raises:
          ValueError: parts that are missing, unknown, or without their statistics.
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
    """The names of the children of a node that are arrays."""
    return {name for name, child in node.items() if not isinstance(child, Mapping | tuple)}


def has_statistics(node: Any) -> bool:
    """Whether a node contains running statistics at any depth."""
    if not isinstance(node, Mapping):
        return False
    return not {"mean", "var"}.isdisjoint(arrays(node)) or any(map(has_statistics, node.values()))


def _length(faults: list[str]) -> int:
    return len(" ".join(faults))


# --- Merged parts ------------------------------------------------------------------------


def conv_of(parts: Parts, name: str, *, biased: bool = True) -> Linear:
    """The convolution `parts[name]`, or `parts[name]["conv"]` if that is its only child.

    Args:
      parts: the merged parts of a block.
      name: of the part.
      biased: whether it must have a bias, which every convolution with a merged batch norm has.

    Raises:
      ValueError: it is missing, or not such a convolution.
    """
    part = _child(parts, name)
    if isinstance(part, Mapping):
        name, part = f"{name}/conv", node_of(parts, name, Form("conv"))["conv"]
    if not isinstance(part, Linear) or part.kernel.ndim != 4:
        raise ValueError(f"{name}: expected the 4 dimensions of a convolution's kernel.")
    if biased and part.bias is None:
        raise ValueError(f"{name}: missing bias, or a batch norm after it.")
    return part


def norm_of(parts: Parts, name: str) -> Affine:
    """The batch norm `parts[name]`.

    Raises:
      ValueError: it is missing, not a batch norm, or has no running statistics.
    """
    part = _child(parts, name)
    if not isinstance(part, Affine):
        names = set(part) if isinstance(part, Mapping) else set()
        faults = Form("scale bias mean var").faults(names)
        raise ValueError(f"{name}: {'; '.join(faults)}.")
    return part


def array_of(parts: Parts, name: str) -> Any:
    """The array `parts[name]`.

    Raises:
      ValueError: it is missing, or not an array.
    """
    if name not in arrays(parts):
        raise ValueError(f"{name}: expected an array, found a module or nothing.")
    return parts[name]


def node_of(parts: Parts, name: str, form: Form) -> Parts:
    """The node `parts[name]`, with parts of the given form.

    Raises:
      ValueError: it is missing, or has other parts.
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
