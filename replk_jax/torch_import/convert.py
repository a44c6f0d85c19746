"""State dicts in official naming as variables, and back."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from replk_jax.io.tensors import TensorLike
from replk_jax.models.backbone import Backbone
from replk_jax.models.variables import differences, in_lines
from replk_jax.reparam import merge_branches, reparameterize
from replk_jax.torch_import import names
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.structures import Structure, abstract_structure

_Places = Mapping[str, tuple[names.Path, Any]]


def convert_state_dict(state_dict: Mapping[str, TensorLike], model: Backbone) -> dict[str, Any]:
    """Maps a state dict in official naming to the variables of `model`.

    Strict: every key is used once and every leaf filled. The counters of the batch norms
    (`num_batches_tracked`) have no counterpart and are only checked for having a batch norm.

    Args:
      state_dict: official names (torchvision's, of MobileNet V2 and ResNet) to arrays in
        PyTorch's layouts, or to what NumPy makes arrays of, which is read one at a time. Of the
        training-time network, of the merged one (RepLKNet's `structural_reparam()`, RepVGG's
        `switch_to_deploy()`), or of one whose batch norms are fused (`deep_fuse_BN()`), with or
        without that merge.
      model: the model that the weights are for. With `deploy=True` they are re-parameterized
        as far as they are not yet.

    Returns:
      The variables of `model`, in their dtypes.

    Raises:
      ValueError: merged weights for a training-time model; or, in one error, every key that is
        missing, left over, of the wrong shape or not floating point.
    """
    structure = family_of(model).STRUCTURES.structure_of(state_dict)
    if structure is not Structure.TRAINING and not model.deploy:
        raise ValueError(
            f"The weights are those of a {structure.value} network, from which the training-time "
            "network cannot be had back: use model.clone(deploy=True), or the file from before "
            "its convolutions were merged or fused."
        )
    places = places_of(model, structure)
    _expect_to_fit(state_dict, places, model)
    variables = _fill(places, state_dict)
    return reparameterize(variables) if model.deploy else variables


def to_state_dict(
    variables: Mapping[str, Any], model: Backbone, *, merged: bool = False
) -> dict[str, np.ndarray]:
    """Maps the variables of a model to the state dict of the official code.

    Args:
      variables: of `model`.
      model: with `deploy=False`; a RepVGG's may be merged, as the official one.
      merged: as after RepLKNet's `structural_reparam()`, for a network that is built with
        `small_kernel_merged=True`, or after RepVGG's `switch_to_deploy()`, for one that is built
        with `deploy=True`.

    Returns:
      Official names (torchvision's, of MobileNet V2 and ResNet), in the official order, to arrays
      in PyTorch's layouts, views where that is possible. The counters of the batch norms are 0:
      they have no counterpart here.

    Raises:
      ValueError: variables of another model, or a network or structure that the official code
        does not have.
    """
    family = family_of(model)
    family.expect_published(model, merged)
    structure = Structure.MERGED if model.deploy else Structure.TRAINING
    state_dict = by_official_name(variables, model)
    _expect_to_fit(state_dict, places_of(model, structure), model)
    if merged and not model.deploy:
        state_dict = by_official_name(jax.jit(merge_branches)(variables), model)
    counters = {key: np.int64(0) for key in names.counters(state_dict)}
    return names.in_order(state_dict | counters, family.ORDER)


def by_official_name(variables: Mapping[str, Any], model: Backbone) -> dict[str, np.ndarray]:
    """The variables of a network in PyTorch's names and layouts, whether published or not.

    Without counters, and in the order of the variables.
    """
    return {
        key: names.to_torch(np.asarray(leaf))
        for key, (_, leaf) in _by_key(variables, model).items()
    }


@functools.lru_cache(maxsize=8)  # to trace a network takes a second, and loading asks twice
def places_of(model: Backbone, structure: Structure) -> _Places:
    """By official key, where each tensor of a structure goes, and the leaf that is there.

    `deploy` of the model does not matter.
    """
    return _by_key(abstract_structure(model.clone(deploy=False), structure), model)


def faults(state_dict: Mapping[str, TensorLike], model: Backbone) -> list[str]:
    """What keeps `convert_state_dict` from converting, one line for each tensor at fault.

    Reads no tensor; `deploy` of the model does not matter.
    """
    structure = family_of(model).STRUCTURES.structure_of(state_dict)
    return _faults(state_dict, places_of(model, structure))


def _by_key(variables: Mapping[str, Any], model: Backbone) -> _Places:
    official_key, architecture = family_of(model).official_key, model.architecture
    return names.by_key(variables, lambda key: official_key(key, architecture))


def _faults(state_dict: Mapping[str, TensorLike], places: _Places) -> list[str]:
    shapes = {
        key: jax.ShapeDtypeStruct(names.torch_shape(leaf.shape), leaf.dtype)
        for key, (_, leaf) in places.items()
    }
    counters = set(names.counters(places))
    given = {key: value for key, value in state_dict.items() if key not in counters}
    return differences(given, shapes) + [
        f"not floating point: {key} is {value.dtype}"
        for key, value in given.items()
        if key in shapes and not jnp.issubdtype(value.dtype, jnp.floating)
    ]


def _expect_to_fit(state_dict: Mapping[str, TensorLike], places: _Places, model: Backbone) -> None:
    if found := _faults(state_dict, places):
        hint = ""
        if any(fault.startswith("not in the model") for fault in found):
            hint = " (load_torch leaves out a tensor if rename= returns None)"
        raise ValueError(
            f"The weights do not fit this {type(model).__name__}{hint}:{in_lines(found)}"
        )


def _fill(places: _Places, state_dict: Mapping[str, TensorLike]) -> dict[str, Any]:
    """A tree with the arrays of the state dict in their places."""
    variables = {}
    for key, (path, leaf) in places.items():
        value = names.to_flax(np.asarray(state_dict[key]))
        variables[path] = jnp.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(variables)
