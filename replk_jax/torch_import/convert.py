"""Converts state dicts in official naming to variables, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from replk_jax.io.tensors import TensorLike
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.variables import differences, in_lines
from replk_jax.reparam import merge_branches, reparameterize
from replk_jax.torch_import import names
from replk_jax.torch_import.composites import composite_of, joined, split
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.places import Places, by_key, places_in, structure_of
from replk_jax.torch_import.structures import Structure


def convert_state_dict(state_dict: Mapping[str, TensorLike], model: Network) -> dict[str, Any]:
    """Converts a state dict in official naming to the variables of `model`.

    It is strict: it uses every key once and fills every leaf. The batch norms' counters
    (`num_batches_tracked`) have no counterpart; it only checks that their batch norms exist.

    Args:
      state_dict: from official names (torchvision's for MobileNet V2 and ResNet) to arrays in
        PyTorch's layouts, or to objects that NumPy converts to arrays, one at a time. Those of a
        composite network are mmsegmentation's or mmdetection's, such as
        "decode_head.conv_seg.weight" and "bbox_head.conv_cls.weight", with the
        backbone's after "backbone.", in any naming that `load_torch` reads. The structure may be
        the training-time one, the merged one (RepLKNet's `structural_reparam()`, RepVGG's
        `switch_to_deploy()`), or one with fused batch norms (`deep_fuse_BN()`), with or without
        that merge; the heads may have fused batch norms or not.
      model: the network to load into. With `deploy=True` the rest of the re-parameterization is
        applied.

    Returns:
      The variables of `model`, in their dtypes.

    Raises:
      ValueError: merged weights for a training-time model; or keys that are missing, unexpected,
        of the wrong shape or not floating point, all in one error.
    """
    if isinstance(model, CompositeNetwork):
        state_dict = _by_official_names(state_dict, model)
    structure = structure_of(state_dict, model)
    if structure is not Structure.TRAINING and not model.deploy:
        raise ValueError(
            f"The weights are those of a {structure.value} network, from which the training-time "
            "network cannot be restored: use model.clone(deploy=True), or the file from before "
            "its convolutions were merged or fused."
        )
    places = places_in(state_dict, model)
    _expect_to_fit(state_dict, places, model)
    variables = _fill(places, state_dict)
    return reparameterize(variables) if model.deploy else variables


def to_state_dict(
    variables: Mapping[str, Any], model: Network, *, merged: bool = False
) -> dict[str, np.ndarray]:
    """Converts the variables of a model to a state dict of the official code.

    Args:
      variables: of `model`.
      model: with `deploy=False`; a RepVGG may be merged, like the official one.
      merged: whether to merge as RepLKNet's `structural_reparam()` does, for a network built with
        `small_kernel_merged=True`, or as RepVGG's `switch_to_deploy()` does, for one built with
        `deploy=True`. The heads of a composite network keep their batch norms.

    Returns:
      From official names (torchvision's for MobileNet V2 and ResNet; for a composite network
      mmsegmentation's or mmdetection's, with the backbone in mmpretrain's), in the official order,
      to arrays in PyTorch's layouts, views if possible. The batch norms' counters are 0.

    Raises:
      ValueError: variables of another model, or a network or structure that the official code
        lacks.
    """
    expect_published(model, merged)
    state_dict = by_official_name(variables, model)
    _expect_to_fit(state_dict, places_in(state_dict, model), model)
    if merged and not model.deploy:
        variables = jax.jit(merge_branches)(variables)
        state_dict = by_official_name(variables, model)
    if isinstance(model, CompositeNetwork):
        return _for_openmmlab(state_dict, model)
    return _in_order(state_dict, family_of(model).ORDER)


def expect_published(model: Network, merged: bool) -> None:
    """Checks that the official code can load the file of a network.

    Args:
      model: the network to save.
      merged: whether its parallel branches are merged first.

    Raises:
      ValueError: it cannot; the message contains the remedy.
    """
    if not isinstance(model, CompositeNetwork):
        family_of(model).expect_published(model, merged)
        return
    composite_of(model).expect_published(model, merged)
    # The configuration, without which these libraries read no file, has the strides.
    backbone = model.backbone.clone(output_stride=None)
    family_of(backbone).expect_published(backbone, merged)


def by_official_name(variables: Mapping[str, Any], model: Network) -> dict[str, np.ndarray]:
    """The variables of a network in PyTorch's names and layouts, in the order of the variables.

    The network need not have been published. The result has no counters.
    """
    return {
        key: names.to_torch(np.asarray(leaf)) for key, (_, leaf) in by_key(variables, model).items()
    }


def faults(state_dict: Mapping[str, TensorLike], model: Network) -> list[str]:
    """The reasons why `convert_state_dict` would fail, one line per tensor.

    It reads no tensors. `deploy` of the model does not matter.
    """
    return _faults(state_dict, places_in(state_dict, model))


def _by_official_names(
    state_dict: Mapping[str, TensorLike], model: CompositeNetwork
) -> dict[str, TensorLike]:
    backbone, heads = split(state_dict)
    backbone, _ = family_of(model.backbone).official_names(backbone)
    return joined(backbone, composite_of(model).official_names(heads))


def _for_openmmlab(
    state_dict: Mapping[str, np.ndarray], model: CompositeNetwork
) -> dict[str, np.ndarray]:
    """Sorts a state dict, and renames the backbone's tensors to mmpretrain's names."""
    family, composite = family_of(model.backbone), composite_of(model)
    backbone, heads = split(state_dict)
    backbone = family.mm_names(_in_order(backbone, family.ORDER), model.backbone.architecture)
    return joined(backbone, _in_order(heads, composite.ORDER))


def _in_order(state_dict: Mapping[str, np.ndarray], order: str) -> dict[str, np.ndarray]:
    """The state dict with the batch norms' counters, in PyTorch's order."""
    counters = {key: np.zeros((), np.int64) for key in names.counters(state_dict)}
    return names.in_order(dict(state_dict) | counters, order)


def _faults(state_dict: Mapping[str, TensorLike], places: Places) -> list[str]:
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


def _expect_to_fit(state_dict: Mapping[str, TensorLike], places: Places, model: Network) -> None:
    if found := _faults(state_dict, places):
        hint = ""
        if any(fault.startswith("not in the model") for fault in found):
            hint = " (load_torch leaves out a tensor if rename= returns None)"
        raise ValueError(
            f"The weights do not fit this {type(model).__name__}{hint}:{in_lines(found)}"
        )


def _fill(places: Places, state_dict: Mapping[str, TensorLike]) -> dict[str, Any]:
    """The tree of variables with the arrays of the state dict."""
    variables = {}
    for key, (path, leaf) in places.items():
        value = names.to_flax(np.asarray(state_dict[key]))
        variables[path] = jnp.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(variables)
