"""Prunes an object graph to a tree that recursive functions can traverse.

A checkpoint may contain objects that contain themselves (a configuration node references its
parent), are nested very deeply, or share parts so often that a traversal does not end. The weights
beside them are unaffected. Placeholders replace the references that cannot be followed.
"""

import itertools
from typing import Any

from replk_jax.torch_import.placeholders import Placeholder

MOST_LEVELS = 100

_CONTAINERS = (dict, list, tuple, set, frozenset, Placeholder)


def prune(contents: Any, most_values: int) -> Any:
    """Replaces by `Placeholder`s the references that make a traversal of `contents` too long.

    The time is proportional to the size of the graph. Lists, dicts, sets and placeholders are
    changed in place.

    Args:
      contents: a graph of dict, list, tuple, set, frozenset, `Placeholder` and values without
        parts.
      most_values: the largest number of values that a traversal may visit, counting shared values
        once per reference.

    Returns:
      `contents` as a tree without cycles, with at most `MOST_LEVELS` levels and `most_values`
      values. Omitted parts are `Placeholder`s with `omitted` set.
    """
    pruned, _, _ = _Pruner(most_values).visit(contents, 0)
    return pruned


class _Pruner:
    """A depth-first traversal. `level` is the number of containers around a value."""

    def __init__(self, most_values: int):
        self._most_values = most_values
        self._open: set[int] = set()
        # By id: the value itself, so that its id stays taken; what replaces it; its extent.
        self._known: dict[int, tuple[Any, Any, int, int]] = {}

    def visit(self, value: Any, level: int) -> tuple[Any, int, int]:
        """Returns the value or its replacement, its number of values and of levels."""
        if not isinstance(value, _CONTAINERS):
            return value, 1, 0
        if id(value) in self._open:
            return _omit(value, "it contains itself")
        known = self._known.get(id(value))
        if known is None:
            # What is left out is one level, and may be within the arguments of a placeholder.
            if level >= MOST_LEVELS - (2 if isinstance(value, Placeholder) else 1):
                return _omit(value, f"it is nested in over {MOST_LEVELS} levels")
            self._open.add(id(value))
            if isinstance(value, Placeholder):
                pruned, values, levels = self._visit_placeholder(value, level + 1)
            else:
                pruned, values, levels = self._visit_all(value, level + 1)
            if values > self._most_values:
                pruned, values, levels = _omit(value, "it unfolds to more values than the file has")
            self._open.discard(id(value))
            known = self._known[id(value)] = value, pruned, values, levels
        _, pruned, values, levels = known
        if level + levels > MOST_LEVELS:
            return _omit(value, f"it is nested in over {MOST_LEVELS} levels")
        return pruned, values, levels

    def _visit_all(self, container: Any, level: int) -> tuple[Any, int, int]:
        """As `visit`, of the parts of a built-in container."""
        parts = container
        if isinstance(container, dict):
            parts = [*container.keys(), *container.values()]
        values, levels, replaced = 1 + len(parts), 1, {}
        for place, part in enumerate(parts):
            if isinstance(part, _CONTAINERS):
                pruned, inner_values, inner_levels = self.visit(part, level)
                values, levels = values + inner_values - 1, max(levels, inner_levels + 1)
                if pruned is not part:
                    replaced[place] = pruned
        if replaced:
            container = _with_parts(
                container, [replaced.get(place, part) for place, part in enumerate(parts)]
            )
        return container, values, levels

    def _visit_placeholder(self, value: Placeholder, level: int) -> tuple[Placeholder, int, int]:
        args, *args_extent = self.visit(value.args, level)
        if isinstance(args, Placeholder):  # other values refer to the arguments as well
            args, *args_extent = (args,), 2, 2
        value.args = args
        value.state, *state_extent = self.visit(value.state, level)
        # No other value refers to these two.
        _, *items_extent = self._visit_all(value.items, level + 1)
        _, *entries_extent = self._visit_all(value.entries, level + 1)
        values, levels = zip(args_extent, state_extent, items_extent, entries_extent, strict=True)
        return value, 1 + sum(values), 1 + max(levels)


def _omit(value: Any, reason: str) -> tuple[Placeholder, int, int]:
    module, name = "builtins", type(value).__name__
    if isinstance(value, Placeholder):
        module, name = value.module, value.name
    return Placeholder(module, name, (), omitted=reason), 1, 1


def _with_parts(container: Any, parts: list[Any]) -> Any:
    """The container with other parts; a new one if it is immutable."""
    match container:
        case dict():
            half = len(parts) // 2
            container.clear()
            container.update(zip(parts[:half], itertools.islice(parts, half, None), strict=True))
        case list():
            container[:] = parts
        case set():
            container.clear()
            container.update(parts)
        case _:
            return type(container)(parts)
    return container
