"""Abstract variables of a model, and checks of variables."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from replk_jax.models.network import Network


def abstract_variables(model: Network, image_size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables, as `jax.ShapeDtypeStruct` leaves.

    A model is traced on the first call alone, for these are kept.

    Args:
      model: any model of this package.
      image_size: (height, width) of the image that is traced. The variables do not depend on it.
    """
    widest = jax.dtypes.canonicalize_dtype(np.float64)
    traced = _traced_variables(model, tuple(image_size), widest)  # pyright: ignore[reportArgumentType]  # modules are hashable
    return jax.tree.map(lambda leaf: leaf, traced)


@functools.lru_cache(maxsize=32)  # tracing takes a second, and loading and saving ask repeatedly
def _traced_variables(
    model: Network, image_size: tuple[int, int], widest: np.dtype
) -> dict[str, Any]:
    """As `abstract_variables`, but shared by all calls, so it must not be changed.

    `widest` is the widest floating-point type that JAX has at the time of the call.
    """
    return jax.eval_shape(model.init, jax.random.key(0), abstract_image(model, image_size))


def abstract_image(model: Network, image_size: tuple[int, int]) -> jax.ShapeDtypeStruct:
    """One image (1, H, W, in_channels) in the dtype of a model's computation.

    Args:
      model: any model of this package.
      image_size: (H, W).
    """
    return jax.ShapeDtypeStruct((1, *image_size, model.in_channels), model.dtype)


_MOST_LINES = 7
_LONGEST_LINE = 200


def in_lines(faults: Sequence[str]) -> str:
    """Faults, one a line; at most 7 of them, each cut to 200 characters."""
    lines = [fault[:_LONGEST_LINE] for fault in faults[:_MOST_LINES]]
    if len(faults) > _MOST_LINES:
        lines.append(f"and {len(faults) - _MOST_LINES} more")
    return "".join(f"\n  {line}" for line in lines)


def differences(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The differences between the shapes of named arrays, one line each.

    Args:
      given, expected: by name, anything with a `shape`.
    """
    faults = []
    for name, leaf in expected.items():
        if name not in given:
            faults.append(f"missing: {name} {tuple(leaf.shape)}")
        elif given[name].shape != leaf.shape:
            faults.append(f"wrong shape: {name} is {given[name].shape}, the model has {leaf.shape}")
    return faults + [f"not in the model: {name}" for name in given if name not in expected]


def by_path(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of variables by their path, such as "params/head/kernel"."""
    return traverse_util.flatten_dict(variables, sep="/")


def conform(arrays: Mapping[str, Any], model: Network) -> dict[str, Any]:
    """Converts arrays by path to the variables of a model, in its dtypes.

    Args:
      arrays: by path, such as "params/head/kernel".
      model: any model of this package.

    Raises:
      ValueError: arrays that are missing, unexpected or of the wrong shape, all in one error.
    """
    expected = by_path(abstract_variables(model))
    if faults := differences(arrays, expected):
        raise ValueError(f"The weights do not fit this {type(model).__name__}:{in_lines(faults)}")
    flat = {path: jnp.asarray(arrays[path], leaf.dtype) for path, leaf in expected.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def diverged_tensors(variables: Mapping[str, Any]) -> list[str]:
    """The paths of tensors that show that training diverged, such as "batch_stats/norm/var".

    Args:
      variables: of a network, arrays of any dtype.

    Returns:
      The paths of tensors with NaN or infinite values, and of negative variances of batch norms.
    """
    return [
        "/".join(key.key for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if _has_diverged(np.asarray(leaf), path[-1].key)
    ]


def _has_diverged(values: np.ndarray, name: str) -> bool:
    is_negative = name == "var" and (values < 0).any()
    return bool(is_negative or not np.isfinite(values).all())
