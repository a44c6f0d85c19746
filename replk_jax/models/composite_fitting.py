"""Fits the heads of a composite network to another number of classes."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.io.user_warnings import warn_user
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.fitting import Fitting
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_image, abstract_variables, by_path, conform

_BACKBONE = "backbone"
Leaves = dict[str, Any]  # flattened variables, by paths such as "params/decode_head/bias"


def fit_classes(
    variables: Mapping[str, Any], own: CompositeNetwork, model: CompositeNetwork, fitting: Fitting
) -> dict[str, Any]:
    """Replaces the weights whose presence or shape depends on the number of classes. Warns.

    Args:
      variables: of `own`, in the training-time structure.
      own: a network.
      model: a network of the same class, which may have another number of classes. With another
        architecture the variables must fit it.
      fitting: whether new weights are permitted, and their seed.

    Returns:
      The variables of the training-time model.

    Raises:
      ValueError: there are new weights, and they are not permitted; or variables that do not fit.
    """
    leaves = by_path(variables)
    if own.num_classes != model.num_classes:
        heads = _with_classes_of(model, heads_of(variables), own, fitting)
        leaves = {path: leaf for path, leaf in leaves.items() if in_backbone(path)} | heads
    return conform(leaves, model.clone(deploy=False))


def draw_heads(model: CompositeNetwork, seed: int) -> Leaves:
    """Initial variables of the heads in the training-time structure, by path."""
    image = abstract_image(model, (32, 32))

    def draw(key: jax.Array) -> Leaves:
        zeros = jnp.zeros(image.shape, image.dtype)
        return heads_of(model.clone(deploy=False).init(key, zeros))

    return jax.jit(draw)(jax.random.key(seed))  # the compiler drops the backbone


def heads_of(variables: Mapping[str, Any]) -> Leaves:
    """The variables outside the backbone, by path."""
    return {path: leaf for path, leaf in by_path(variables).items() if not in_backbone(path)}


def in_backbone(path: str) -> bool:
    """Whether a variable is in the backbone, by its path."""
    return path.split("/")[1] == _BACKBONE


def with_backbone(backbone: Mapping[str, Any], heads: Leaves) -> Leaves:
    """Combines the variables of a backbone and of heads.

    Returns:
      The variables of the composite network, by path.
    """
    nested = {collection: {_BACKBONE: tree} for collection, tree in backbone.items()}
    return by_path(nested) | heads


def _with_classes_of(
    model: CompositeNetwork, heads: Leaves, own: CompositeNetwork, fitting: Fitting
) -> Leaves:
    before = _abstract_heads(own)
    after = _abstract_heads(own.clone(num_classes=model.num_classes))
    replaced, new = _changed(before, after), _changed(after, before)
    if new and not fitting.reset_head:
        raise ValueError(
            f"it has {_classes(own)}, the model has {model.num_classes or 'none'}: load with "
            "reset_head=True to draw new weights for them."
        )
    changes = []
    if replaced:
        layers = _layers(replaced)
        changes.append(f"The weights for {_classes(own)} of the file are left out: {layers}.")
    if new:
        changes.append(f"The weights for {_classes(model)} are drawn at random: {_layers(new)}.")
    if changes:
        warn_user(" ".join(changes))
    drawn = draw_heads(model, fitting.seed) if new else {}
    kept = {path: leaf for path, leaf in heads.items() if path not in replaced}
    return kept | {path: drawn[path] for path in new & drawn.keys()}


def _classes(network: Network) -> str:
    """The number of classes, in words."""
    return f"{network.num_classes or 'no'} classes"


def _changed(leaves: Leaves, others: Leaves) -> set[str]:
    """The paths of leaves that the others lack, or have in another shape."""
    return {
        path
        for path, leaf in leaves.items()
        if path not in others or others[path].shape != leaf.shape
    }


def _layers(paths: Iterable[str]) -> str:
    """The modules of leaves, as a list in a sentence."""
    return ", ".join(sorted({path.partition("/")[2].rpartition("/")[0] for path in paths}))


def _abstract_heads(model: CompositeNetwork) -> Leaves:
    """Shapes and dtypes of the heads in the training-time structure."""
    return heads_of(abstract_variables(model.clone(deploy=False)))
