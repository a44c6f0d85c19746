"""Cuts an object graph down to a tree that any recursive function can walk.

A checkpoint may hold objects that contain themselves (a configuration node knows its parent), are
nested arbitrarily deep, or share parts so often that a walk never ends. None of that concerns the
weights beside them. References that a walk could not follow are replaced by placeholders.
"""

import itertools
from typing import Any

from replk_jax.torch_import.placeholders import Placeholder

MOST_LEVELS = 100

_CONTAINERS = (dict, list, tuple, set, frozenset, Placeholder)


def prune(contents: Any, most_values: int) -> Any:
    """Replaces what makes a walk through `contents` endless by `Placeholder`s.

    Takes time in proportion to the size of the graph. Lists, dicts, sets and placeholders are
    changed in place.

    Args:
      contents: a graph of dict, list, tuple, set, frozenset, `Placeholder` and other values, none
        of which has parts.
      most_values: the largest number of values that a walk without a memory may meet.

    Returns:
      `contents` as a tree: it does not contain itself, has at most `MOST_LEVELS` levels, and
      unfolds to at most `most_values` values. What was left out is a `Placeholder` with
      `omitted` set.
    """
    pruned, _, _ = _Pruner(most_values).visit(contents, 0)
    return pruned


class _Pruner:
    """A depth-first walk. `level` is the number of containers around a value."""

    def __init__(self, most_values: int):
        self._most_values = most_values
        self._open: set[int] = set()
        # By id: the value itself, so that its id stays taken; what replaces it; its extent.
        self._known: dict[int, tuple[Any, Any, int, int]] = {}

    def visit(self, value: Any, level: int) -> tuple[Any, int, int]:
        """Returns the value or what replaces it, its number of values and of levels."""
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
            inside = self._visit_placeholder if isinstance(value, Placeholder) else self._visit_all
            pruned, values, levels = inside(value, level + 1)
            if values > self._most_values:
                pruned, values, levels = _omit(value, "it unfolds to more values than the file has")
            self._open.discard(id(value))
            known = self._known[id(value)] = value, pruned, values, levels
        _, pruned, values, levels = known
        if level + levels > MOST_LEVELS:
            return _omit(value, f"it is nested in over {MOST_LEVELS} levels")
        return pruned, values, levels

    def _visit_all(self, container: Any, level: int) -> tuple[Any, int, int]:
        """Of a container of Python's."""
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
    """The container, if it can be changed, else a new one."""
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
