"""Between PyTorch's names and layouts and those of Flax.

The modules here mirror the official ones, so a name follows by rule: `_4` is `.4`, and the
last part changes; what a family does otherwise is in its module. Kernels change from (out, in
per group, rows, columns) to (rows, columns, in per group, out), and the classifier from
(out, in) to (in, out).
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
# Counts batches for PyTorch's cumulative average, which no published model uses.
COUNTER = "num_batches_tracked"

# The modules that hold classifiers, of any kind and in any naming. No family has other parts of
# these names.
CLASSIFIER = re.compile(r"(?:heads?|linear|classifier|fc|last_linear)\.")
# A classifier that is a linear layer and has one of the usual names.
_LINEAR = re.compile(r"(head|head\.fc|linear|classifier|fc|last_linear)\.(weight|bias)")


def by_rule(path: Path) -> str:
    """The name in PyTorch of a leaf of the variables, in a network that mirrors the one here."""
    _, *modules, leaf = path
    # In `rbr_1x1` the number is part of a word.
    parts = [re.sub(r"_(\d+)(?=_|$)", r".\1", module) for module in modules]
    return ".".join([*parts, _LAST_PART.get(leaf, leaf)])


def by_key(variables: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Where each tensor has its place in a tree of variables, and the leaf there.

    Args:
      variables: the tree.
      rename: what the name by rule becomes.

    Returns:
      (path, leaf) by the tensor's name.
    """
    flat = traverse_util.flatten_dict(variables)
    return {rename(by_rule(path)): (path, leaf) for path, leaf in flat.items()}


def renamed(weights: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    """The weights by other names.

    Raises:
      ValueError: two tensors that come to have the same name.
    """
    result: dict[str, Value] = {}
    for key, value in weights.items():
        name = rename(key)
        if name in result or (name != key and name in weights):
            raise ValueError(f"two tensors stand for the same one, {name}")
        result[name] = value
    return result


def with_classifier_called(weights: Mapping[str, Value], name: str) -> dict[str, Value]:
    """The weights with a linear classifier of another usual name renamed.

    Args:
      weights: of one network, with no more than one classifier.
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
    """The weights without all that is in a module with the name of a classifier."""
    return {name: value for name, value in weights.items() if not CLASSIFIER.match(name)}


def naming_of(keys: Iterable[str], namings: Mapping[str, str]) -> str:
    """Whose names the keys are.

    Args:
      keys: names of tensors.
      namings: for each naming a pattern of what only its names begin with.

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
    """The key after one substitution, a pattern and what stands for it, after the other."""
    for pattern, replacement in replacements:
        key = re.sub(pattern, replacement, key)
    return key


def counters(keys: Iterable[str]) -> list[str]:
    """The counters that PyTorch keeps beside the statistics among `keys`."""
    ending = "running_var"
    return [key.removesuffix(ending) + COUNTER for key in keys if key.endswith(ending)]


def in_order(state_dict: Mapping[str, Value], order: str) -> dict[str, Value]:
    """A state dict in the order in which PyTorch lists it.

    Args:
      state_dict: what to sort.
      order: the parts that its names are made of, with spaces between them, those of modules as
        they are created. A part stands also for itself with a number behind it.
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
    """The shape in PyTorch of what has this shape in Flax."""
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
