"""Converts names and layouts between PyTorch and Flax.

The modules here mirror the official ones, so names follow a rule: `_4` becomes `.4`, and the last
part changes. Exceptions are in the module of each family. Kernels change from (out, in per group,
rows, columns) to (rows, columns, in per group, out), and classifiers from (out, in) to (in, out).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from flax import traverse_util

from replk_jax.io.text import brief

Path = tuple[str, ...]
Value = TypeVar("Value")

_LAST_PART = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The number of batches, for PyTorch's cumulative average, which no published model uses.
COUNTER = "num_batches_tracked"

# The modules that contain classifiers, of any kind and in any naming. No family uses these names
# for other modules.
CLASSIFIER = re.compile(r"(?:heads?|linear|classifier|fc|last_linear)\.")
# A classifier that is a linear layer and has one of the usual names.
_LINEAR = re.compile(r"(head|head\.fc|linear|classifier|fc|last_linear)\.(weight|bias)")


def by_rule(path: Path) -> str:
    """The name in PyTorch of a leaf of the variables, in a network that mirrors the one here."""
    _, *modules, leaf = path
    # Not the number in `rbr_1x1`.
    parts = [re.sub(r"_(\d+)(?=_|$)", r".\1", module) for module in modules]
    return ".".join([*parts, _LAST_PART.get(leaf, leaf)])


def by_key(variables: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Maps the name of each tensor to its path and leaf in a tree of variables.

    Args:
      variables: the tree.
      rename: maps the name by rule to the tensor's name.

    Returns:
      From name to (path, leaf).
    """
    flat = traverse_util.flatten_dict(variables)
    return {rename(by_rule(path)): (path, leaf) for path, leaf in flat.items()}


def renamed(weights: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    """Renames weights.

    Raises:
      ValueError: two tensors that would get the same name.
    """
    result: dict[str, Value] = {}
    for key, value in weights.items():
        name = rename(key)
        if name in result or (name != key and name in weights):
            raise ValueError(f"two tensors would have the same name, {name}")
        result[name] = value
    return result


def with_classifier_called(weights: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Renames a linear classifier that has another common name.

    Args:
      weights: of one network, with at most one classifier.
      name: of the classifier in the official code.
    """
    found = [key for key in weights if CLASSIFIER.match(key)]
    matches = [match for match in map(_LINEAR.fullmatch, found) if match]
    one_layer = len(matches) == len(found) and len({match[1] for match in matches}) == 1
    if not one_layer or matches[0][1] == name:
        return dict(weights)
    if len(getattr(weights.get(f"{matches[0][1]}.weight"), "shape", ())) != 2:
        return dict(weights)
    renames = {match[0]: f"{name}.{match[2]}" for match in matches}
    return {renames.get(key, key): value for key, value in weights.items()}


def without_classifier(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Removes everything in modules with the name of a classifier."""
    return {name: value for name, value in weights.items() if not CLASSIFIER.match(name)}


def naming_of(keys: Iterable[str], namings: Mapping[str, str]) -> str:
    """Identifies the naming of keys.

    Args:
      keys: names of tensors.
      namings: from each naming to a pattern of the start of names that only it has.

    Raises:
      ValueError: names of two kinds.
    """
    keys = list(keys)
    found = {
        naming: next((key for key in keys if re.match(pattern, key)), None)
        for naming, pattern in namings.items()
    }
    used = {naming: key for naming, key in found.items() if key is not None}
    if len(used) > 1:
        mixed = " and ".join(f"{brief(key)} ({naming})" for naming, key in used.items())
        raise ValueError(f"it mixes names of two kinds, {mixed}: they are of two files")
    return next(iter(used or namings))


def replace_all(key: str, replacements: Iterable[tuple[str, str]]) -> str:
    """Applies regular-expression substitutions (pattern, replacement) in turn."""
    for pattern, replacement in replacements:
        key = re.sub(pattern, replacement, key)
    return key


def counters(keys: Iterable[str]) -> list[str]:
    """The names of PyTorch's counters for the running statistics among `keys`."""
    ending = "running_var"
    return [key.removesuffix(ending) + COUNTER for key in keys if key.endswith(ending)]


def in_order(state_dict: Mapping[str, Value], order: str) -> dict[str, Value]:
    """Sorts a state dict in PyTorch's order.

    Args:
      state_dict: to sort.
      order: the parts of its names, separated by spaces, in the order of creation. A part also
        matches itself followed by a number.
    """
    ranks = {part: rank for rank, part in enumerate(order.split())}

    def place(part: str) -> tuple[int, int]:
        if part in ranks:
            return ranks[part], 0
        word = part.rstrip("0123456789")
        return ranks[word] if word else 0, int(part.removeprefix(word))

    def places(key: str) -> list[tuple[int, int]]:
        return [place(part) for part in key.split(".")]

    return {key: state_dict[key] for key in sorted(state_dict, key=places)}


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Converts a shape from Flax's layout to PyTorch's."""
    if len(shape) == 4:
        rows, columns, in_per_group, out = shape
        return (out, in_per_group, rows, columns)
    return shape[::-1]


def to_flax(value: np.ndarray) -> np.ndarray:
    """A view in the layout of Flax."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value: np.ndarray) -> np.ndarray:
    """A view in the layout of PyTorch."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
