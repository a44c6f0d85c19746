"""The reference data in ../shared/golden: numbers that the official PyTorch code gave."""

import importlib.util
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "golden"

# Continuous integration must run these checks, so there a missing folder is a failure of the
# test that wants it.
required = pytest.mark.skipif(
    not ROOT.is_dir() and not os.environ.get("CI"),
    reason=f"the reference data is not there: {ROOT}",
)


def small_cases(pattern: str = "replk_") -> dict[str, Any]:
    """Case name to facts, for the small models; empty where the folder is absent."""
    return _cases("small", pattern)


def full_cases(pattern: str = "replknet_") -> dict[str, Any]:
    """Case name to facts, for the full-size models; empty where the folder is absent."""
    return _cases("full", pattern)


def _cases(folder: str, pattern: str) -> dict[str, Any]:
    path = ROOT / folder / "cases.json"
    if not path.is_file():
        return {}
    return {n: c for n, c in json.loads(path.read_text()).items() if n.startswith(pattern)}


def arrays(path: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file below the folder."""
    with np.load(ROOT / path) as file:
        return dict(file)


def manifest(name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes of a full-size model's tensors."""
    entries = json.loads((ROOT / "manifests" / name).read_text())
    return [(key, tuple(shape), dtype) for key, shape, dtype in entries]


def manifest_index() -> dict[str, Any]:
    """What each manifest is, with its parameter count."""
    return json.loads((ROOT / "manifests/index.json").read_text())


def weights_rule():
    """The module that makes the full-size models' weights and inputs."""
    spec = importlib.util.spec_from_file_location("weights_rule", ROOT / "full/weights_rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a plain .pth file (a bare state dict, contiguous), without PyTorch."""
    with zipfile.ZipFile(ROOT / path) as archive:
        stem = archive.namelist()[0].split("/")[0]
        with archive.open(f"{stem}/data.pkl") as file:
            return dict(_Unpickler(file, archive, stem).load())


_STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive, stem):
        super().__init__(file)
        self._archive, self._stem = archive, stem

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a plain state dict")

    def persistent_load(self, pid):
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._stem}/data/{key}"), dtype)

    @staticmethod
    def _rebuild(storage, offset, shape, stride, *_):
        size = int(np.prod(shape, dtype=np.int64))
        return storage[offset : offset + size].reshape(shape)


def assert_close(actual, expected, rtol, what):
    """Largest difference against `rtol` times the larger of 1 and the largest expected value."""
    assert actual.shape == expected.shape, what
    bound = rtol * max(1.0, np.abs(expected).max())
    error = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert error <= bound, f"{what}: {error:.2e} > {bound:.2e}"


def flax_path(key: str) -> list[str]:
    """The parts of an official name, with numbers joined to what they count: `blocks_4`."""
    path: list[str] = []
    for part in key.split("."):
        if part.isdigit():
            path[-1] += f"_{part}"
        else:
            path.append(part)
    return path


def nhwc(x: np.ndarray) -> np.ndarray:
    """Images or maps from PyTorch's order of axes."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def by_official_name(variables):
    """Leaves by official name and in PyTorch's layout, written apart from the importer."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = [key.key for key in path[1:]]
        name = ".".join(re.sub(r"_(?=\d+(_|$))", ".", module) for module in modules)
        last = {"mean": "running_mean", "var": "running_var", "bias": "bias"}.get(last, "weight")
        leaf = np.asarray(leaf)
        leaves[f"{name}.{last}"] = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return leaves
