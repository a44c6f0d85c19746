"""Between PyTorch's names and layouts and those of Flax.

The modules here mirror the official ones, so a name follows by rule: `_4` is `.4`, and the
last part changes. Kernels change from (out, in per group, rows, columns) to
(rows, columns, in per group, out), and the classifier from (out, in) to (in, out).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

Path = tuple[str, ...]

_LAST_PART = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Counts batches for PyTorch's cumulative average, which no published model uses.
COUNTER = "num_batches_tracked"


def by_official_key(variables: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
    """Where each official tensor has its place in a tree of variables, and the leaf there."""
    flat = traverse_util.flatten_dict(variables)
    return {_official_key(path): (path, leaf) for path, leaf in flat.items()}


def counters(keys: Mapping[str, Any]) -> list[str]:
    """The counters that PyTorch keeps beside the statistics among `keys`."""
    ending = "running_var"
    return [key.removesuffix(ending) + COUNTER for key in keys if key.endswith(ending)]


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


def _official_key(path: Path) -> str:
    _, *modules, leaf = path
    return ".".join([*(re.sub(r"_(\d+)", r".\1", m) for m in modules), _LAST_PART.get(leaf, leaf)])
