"""The reference data in ../shared/golden/downstream/segmentation: what mmsegmentation computed."""

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import replk_jax
from replk_jax.torch_import import names
from tests import reference_data

FOLDER = "downstream/segmentation"
ARCHITECTURE = replk_jax.RepLKNetArchitecture(
    (9, 7, 5, 3), (1, 1, 2, 1), (16, 24, 32, 40), small_kernel=3
)


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file in `small`, such as "whole_even".

    Images and feature maps are NHWC. Weights and gradients keep PyTorch's layouts: those in
    "weights", and the entries with `weights/` or `grad/` in their names.
    """
    arrays = reference_data.arrays(f"{FOLDER}/small/{name}.npz")
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


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """From key to shape in PyTorch's layout, in order; without the batch norms' counters."""
    path = reference_data.ROOT / FOLDER / "manifests" / f"{name}.json"
    entries = json.loads(path.read_text())
    return {
        entry["key"]: tuple(entry["shape"])
        for entry in entries
        if not entry["key"].endswith(names.COUNTER)
    }


def fill(module: nn.Module, state_dict: dict[str, np.ndarray], *inputs: Any) -> dict[str, Any]:
    """The variables of a module, from a state dict that names exactly them.

    Args:
      module: to fill.
      state_dict: names and layouts as in PyTorch; counters of batch norms are left out.
      *inputs: arrays to initialise the module with, of any values.
    """
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    flat = traverse_util.flatten_dict(abstract)
    left = {key: value for key, value in state_dict.items() if not key.endswith(names.COUNTER)}
    filled = {}
    for path, leaf in flat.items():
        value = names.to_flax(left.pop(names.by_rule(path)))
        assert value.shape == leaf.shape, path
        filled[path] = jnp.asarray(value, leaf.dtype)
    assert not left, sorted(left)
    return traverse_util.unflatten_dict(filled)


def tiny_upernet(**fields: Any) -> tuple[replk_jax.SegmentationNetwork, dict[str, Any]]:
    """The tiny segmenter of `small/weights.npz`, training-time, and its variables.

    Args:
      **fields: of `SegmentationNetwork`, such as `align_corners` or `dtype`.
    """
    model = replk_jax.create_segmenter(
        "upernet", ARCHITECTURE, num_classes=7, channels=24, auxiliary_channels=16, **fields
    )
    return model, fill(model, load("weights"), jnp.zeros((1, 32, 32, 3), model.dtype))
