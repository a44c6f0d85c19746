"""Converts state dicts in official naming to variables, and back."""

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
    """Converts a state dict in official naming to the variables of `model`.

    It is strict: it uses every key once and fills every leaf. The batch norms' counters
    (`num_batches_tracked`) have no counterpart; it only checks that their batch norms exist.

    Args:
      state_dict: from official names (torchvision's for MobileNet V2 and ResNet) to arrays in
        PyTorch's layouts, or to objects that NumPy converts to arrays, one at a time. The
        structure may be the training-time one, the merged one (RepLKNet's `structural_reparam()`,
        RepVGG's `switch_to_deploy()`), or one with fused batch norms (`deep_fuse_BN()`), with or
        without that merge.
      model: the network to load into. With `deploy=True` the rest of the re-parameterization is
        applied.

    Returns:
      The variables of `model`, in their dtypes.

    Raises:
      ValueError: merged weights for a training-time model; or keys that are missing, unexpected,
        of the wrong shape or not floating point, all in one error.
    """
    structure = family_of(model).STRUCTURES.structure_of(state_dict)
    if structure is not Structure.TRAINING and not model.deploy:
        raise ValueError(
            f"The weights are those of a {structure.value} network, from which the training-time "
            "network cannot be restored: use model.clone(deploy=True), or the file from before "
            "its convolutions were merged or fused."
        )
    places = places_of(model, structure)
    _expect_to_fit(state_dict, places, model)
    variables = _fill(places, state_dict)
    return reparameterize(variables) if model.deploy else variables


def to_state_dict(
    variables: Mapping[str, Any], model: Backbone, *, merged: bool = False
) -> dict[str, np.ndarray]:
    """Converts the variables of a model to a state dict of the official code.

    Args:
      variables: of `model`.
      model: with `deploy=False`; a RepVGG may be merged, like the official one.
      merged: whether to merge as RepLKNet's `structural_reparam()` does, for a network built with
        `small_kernel_merged=True`, or as RepVGG's `switch_to_deploy()` does, for one built with
        `deploy=True`.

    Returns:
      From official names (torchvision's for MobileNet V2 and ResNet), in the official order, to
      arrays in PyTorch's layouts, views if possible. The batch norms' counters are 0.

    Raises:
      ValueError: variables of another model, or a network or structure that the official code
        lacks.
    """
    family = family_of(model)
    family.expect_published(model, merged)
    structure = Structure.MERGED if model.deploy else Structure.TRAINING
    state_dict = by_official_name(variables, model)
    _expect_to_fit(state_dict, places_of(model, structure), model)
    if merged and not model.deploy:
        state_dict = by_official_name(jax.jit(merge_branches)(variables), model)
    counters = {key: np.zeros((), np.int64) for key in names.counters(state_dict)}
    return names.in_order(state_dict | counters, family.ORDER)


def by_official_name(variables: Mapping[str, Any], model: Backbone) -> dict[str, np.ndarray]:
    """The variables of a network in PyTorch's names and layouts, in the order of the variables.

    The network need not have been published. The result has no counters.
    """
    return {
        key: names.to_torch(np.asarray(leaf))
        for key, (_, leaf) in _by_key(variables, model).items()
    }


def places_of(model: Backbone, structure: Structure) -> _Places:
    """For each official key of a structure, the path and the leaf of the variable.

    `deploy` of the model does not matter.
    """
    return _places_of(model, structure)  # pyright: ignore[reportArgumentType]  # modules are hashable


@functools.lru_cache(maxsize=8)  # tracing a network takes a second, and loading needs it twice
def _places_of(model: Backbone, structure: Structure) -> _Places:
    return _by_key(abstract_structure(model.clone(deploy=False), structure), model)


def faults(state_dict: Mapping[str, TensorLike], model: Backbone) -> list[str]:
    """The reasons why `convert_state_dict` would fail, one line per tensor.

    It reads no tensors. `deploy` of the model does not matter.
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
    """The tree of variables with the arrays of the state dict."""
    variables = {}
    for key, (path, leaf) in places.items():
        value = names.to_flax(np.asarray(state_dict[key]))
        variables[path] = jnp.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(variables)
