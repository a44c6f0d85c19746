"""From the names and layouts of PyTorch to those of Flax.

The modules here mirror the official ones, so a name follows by rule: `_4` is `.4`, and the
last part changes. Kernels change from (out, in per group, rows, columns) to
(rows, columns, in per group, out), and the classifier from (out, in) to (in, out).
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from replk_jax.models.variables import abstract_variables

_LAST_PART = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Counts batches for PyTorch's cumulative average, which no published model uses.
_COUNTER = "num_batches_tracked"


def convert_state_dict(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """Maps a state dict in official naming to the variables of `model`.

    Strict: every key is used once and every leaf filled. The counters of the batch norms
    (`num_batches_tracked`) have no counterpart and are only checked for having a batch norm.

    Args:
      state_dict: official names to arrays, in PyTorch's layouts.
      model: the model that the weights are for, in its training-time structure.

    Returns:
      {"params": ..., "batch_stats": ...}, in the dtypes of the model's variables.

    Raises:
      ValueError: a model in its merged structure, which no official state dict has; or, in one
        error, every key that is missing, left over, of the wrong shape or not floating point.
    """
    if model.deploy:
        raise ValueError(
            "The official code leaves batch norms standing that the merged structure here has "
            "not: convert to the model with deploy=False, then reparameterize the variables."
        )
    leaves = traverse_util.flatten_dict(abstract_variables(model))
    expected = {_official_key(path): (path, leaf) for path, leaf in leaves.items()}
    known = expected.keys() | {
        key.removesuffix("running_var") + _COUNTER
        for key in expected
        if key.endswith("running_var")
    }

    faults, variables = [], {}
    for key, (path, leaf) in expected.items():
        if key not in state_dict:
            faults.append(f"missing: {key} {_official_shape(leaf.shape)}")
            continue
        value = np.asarray(state_dict[key])
        if value.shape != _official_shape(leaf.shape):
            shape = _official_shape(leaf.shape)
            faults.append(f"wrong shape: {key} is {value.shape}, the model has {shape}")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            faults.append(f"not floating point: {key} is {value.dtype}")
        else:
            variables[path] = jnp.asarray(_to_flax_layout(value), leaf.dtype)
    faults += [f"not in the model: {key}" for key in state_dict if key not in known]
    if faults:
        raise ValueError(
            f"The state dict does not fit this {type(model).__name__}:\n  " + "\n  ".join(faults)
        )
    return traverse_util.unflatten_dict(variables)


def _official_key(path: tuple[str, ...]) -> str:
    _, *modules, leaf = path
    return ".".join([*(re.sub(r"_(\d+)", r".\1", m) for m in modules), _LAST_PART[leaf]])


def _official_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        rows, columns, in_per_group, out = shape
        return (out, in_per_group, rows, columns)
    return shape[::-1]


def _to_flax_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
