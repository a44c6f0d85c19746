"""A warning about the weights of a run that diverged."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from replk_jax.saved import SavedNetwork


def warn_if_diverged(network: SavedNetwork) -> None:
    """Warns of tensors that hold NaN or infinite values, or negative running variances."""
    diverged = diverged_tensors(network.variables)
    if diverged:
        count = f"{len(diverged)} tensors have" if len(diverged) > 1 else "One tensor has"
        first = "the first is" if len(diverged) > 1 else "it is"
        warnings.warn(
            f"{count} NaN or infinite values or negative variances; {first} {diverged[0]}. The "
            "weights may be of a run that diverged: the network's outputs may be NaN.",
            stacklevel=2,
        )


def diverged_tensors(variables: Mapping[str, Any]) -> list[str]:
    """The paths of tensors that no sound network has, such as "batch_stats/norm/var".

    Args:
      variables: of a network, arrays of any dtype.

    Returns:
      In the order of their paths, those that hold NaN or infinite values, and variances of batch
      norms below 0.
    """
    return [
        "/".join(key.key for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if _has_diverged(np.asarray(leaf), path[-1].key)
    ]


def _has_diverged(values: np.ndarray, name: str) -> bool:
    is_negative = name == "var" and (values < 0).any()
    return bool(is_negative or not np.isfinite(values).all())
