"""Weights and images that follow from names, shapes and a seed, so that no file holds them."""

import hashlib
import math
import zlib
from collections.abc import Mapping

import numpy as np


def make_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """The state dict of a network.

    Args:
      shapes: PyTorch's name of each tensor to its shape.
      seed: a whole number, from 0 up.

    Returns:
      float32 arrays by name, the counters of batches int64.
    """
    return {key: _tensor(key, shape, seed) for key, shape in shapes.items()}


def make_images(name: str, shape: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """Noise (N, C, H, W) of deviation 1 in float32, a multiple of 1/16."""
    return (np.round(16 * math.sqrt(3) * _uniform(name, seed, shape)) / 16).astype(np.float32)


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the little-endian bytes of the arrays, in their order."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _uniform(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1), drawn in C order by a generator of this name's own."""
    return 2 * np.random.default_rng([seed, zlib.crc32(name.encode())]).random(shape) - 1


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = _uniform(key, seed, shape)
    if last == "running_var":
        values = 1.25 + 0.75 * values
    elif last in ("running_mean", "bias"):
        values = 0.2 * values
    elif len(shape) == 1:  # the scale of a batch norm: one in eight is negative
        signs = np.where(_uniform(f"{key}.sign", seed, shape) < -0.75, -1, 1)
        values = signs * (1 + 0.5 * values)
    else:  # a kernel, which keeps the variance of what passes it and a ReLU
        values *= math.sqrt(6 / math.prod(shape[1:]))
    return values.astype(np.float32)
