"""The reference data in ../shared/golden/downstream, by mmsegmentation and mmdetection."""

import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import replk_jax
from replk_jax.torch_import import names
from tests import reference_data

FOLDER = "downstream"
# The backbone of all small cases.
ARCHITECTURE = replk_jax.RepLKNetArchitecture(
    (9, 7, 5, 3), (1, 1, 2, 1), (16, 24, 32, 40), small_kernel=3
)


def load(folder: str, name: str) -> dict[str, np.ndarray]:
    """The arrays of a file in `small` of a folder, such as "segmentation" and "whole_even".

    Images and feature maps are NHWC. Weights and gradients keep PyTorch's layouts: those in
    "weights", and the entries with `weights/` or `grad/` in their names.
    """
    arrays = reference_data.arrays(f"{FOLDER}/{folder}/small/{name}.npz")
    if name == "weights":
        return arrays
    return {
        key: array
        if array.ndim != 4 or "weights/" in key or "grad/" in key
        else reference_data.nhwc(array)
        for key, array in arrays.items()
    }


def section(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names start with a prefix, by the rest of their names."""
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def manifest(folder: str, name: str) -> dict[str, tuple[int, ...]]:
    """From key to shape in PyTorch's layout, in order; without the batch norms' counters."""
    path = reference_data.ROOT / FOLDER / folder / "manifests" / f"{name}.json"
    entries = json.loads(path.read_text())
    return {
        entry["key"]: tuple(entry["shape"])
        for entry in entries
        if not entry["key"].endswith(names.COUNTER)
    }


def counts(folder: str, config: str) -> dict[str, Any]:
    """The row of a configuration in a folder's `counts.json`."""
    path = reference_data.ROOT / FOLDER / folder / "counts.json"
    return next(row for row in json.loads(path.read_text()) if row["config"] == config)


def fill(
    module: nn.Module,
    state_dict: dict[str, np.ndarray],
    *inputs: Any,
    rename: Callable[[str], str] = str,
) -> dict[str, Any]:
    """The variables of a module, from a state dict that names exactly them.

    Args:
      module: to fill.
      state_dict: names and layouts as in PyTorch; counters of batch norms are left out.
      *inputs: arrays to initialise the module with, of any values.
      rename: from names by rule to those in the state dict.
    """
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    flat = traverse_util.flatten_dict(abstract)
    left = {key: value for key, value in state_dict.items() if not key.endswith(names.COUNTER)}
    filled = {}
    for path, leaf in flat.items():
        value = names.to_flax(left.pop(rename(names.by_rule(path))))
        assert value.shape == leaf.shape, path
        filled[path] = jnp.asarray(value, leaf.dtype)
    assert not left, sorted(left)
    return traverse_util.unflatten_dict(filled)


def fused(tree: dict[str, Any]) -> dict[str, Any]:
    """The official `deep_fuse_BN()`: a bias in place of every batch norm after a convolution."""
    if set(tree) == {"conv", "bn"}:
        return {"kernel": tree["conv"]["kernel"], "bias": tree["bn"]["bias"]}
    return {name: fused(node) if isinstance(node, dict) else node for name, node in tree.items()}


def assert_close(actual: Any, expected: np.ndarray, limit: float, what: Any) -> None:
    """Within `limit` of the largest value; values below 1e-6 are rounding noise."""
    assert actual.shape == expected.shape, what
    bound = max(limit * np.abs(expected).max(), 1e-6)
    error = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert error <= bound, f"{what}: {error:.2e} > {bound:.2e}"
