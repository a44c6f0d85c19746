"""Fits the variables of one network to another, which starts from them."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from replk_jax.checkpoint.record import Checkpoint
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_image, abstract_variables, differences, in_lines
from replk_jax.reparam import reparameterize
from replk_jax.torch_import import (
    Contents,
    Fitted,
    Fitting,
    Selection,
    fit_variables,
    load_contents,
)

_BACKBONE = "backbone"
_Leaves = dict[tuple[str, ...], Any]  # flattened variables: (collection, module, ..., name)


def fit_network(
    loaded: Checkpoint, model: Network, fitting: Fitting, *, source: str
) -> dict[str, Any]:
    """Fits the variables of a network of this package to a model.

    Args:
      loaded: the network of the file, in its training-time structure.
      model: a network of the same class, or a composite network with a backbone of that class.
      fitting: the permitted changes to the variables.
      source: name of the file, for warnings.

    Returns:
      The variables of the model.

    Raises:
      ValueError: a network of another class, or variables that do not fit.
    """
    own, variables = loaded.model, loaded.variables
    if isinstance(model, Backbone) and isinstance(own, Backbone) and type(own) is type(model):
        return fit_variables(variables, own, model, fitting, source=source).variables
    wanted = f"a {type(model).__name__}"
    if isinstance(model, CompositeNetwork):
        backbone = model.backbone
        if isinstance(own, CompositeNetwork) and type(own) is type(model):
            return _fit_composite(variables, own, model, fitting, source)
        if isinstance(own, Backbone) and type(own) is type(backbone):
            with _naming_backbone(model):
                fitted = fit_variables(variables, own, backbone, fitting, source=source)
            return _start_from_backbone(model, fitted, fitting.seed, source)
        wanted += f" or its backbone, a {type(backbone).__name__}"
    raise ValueError(f"it holds a {type(own).__name__}, not {wanted}.")


def fit_contents(
    contents: Contents, model: Network, selection: Selection, fitting: Fitting, *, source: str
) -> tuple[Backbone, dict[str, Any]]:
    """Fits the weights of a PyTorch file to a model, or to the backbone of a composite one.

    Args:
      contents: of the file.
      model: of the file's family, or a composite network with a backbone of it.
      selection: which weights of the file to read.
      fitting: the permitted changes to them.
      source: name of the file, for warnings.

    Returns:
      The network that received the weights, and the variables of the model.

    Raises:
      ValueError: as `load_torch`.
    """
    load = partial(load_contents, contents, selection=selection, source=source, fitting=fitting)
    if not isinstance(model, CompositeNetwork):
        backbone, fitted = load(model)
        return backbone, fitted.variables
    with _naming_backbone(model):
        backbone, fitted = load(model.backbone)
    return backbone, _start_from_backbone(model, fitted, fitting.seed, source)


@contextlib.contextmanager
def _naming_backbone(model: CompositeNetwork) -> Iterator[None]:
    """Adds to a ValueError that it is about the backbone of a network."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"for the backbone of a {type(model).__name__}: {error}") from error


def _start_from_backbone(
    model: CompositeNetwork, fitted: Fitted, seed: int, source: str
) -> dict[str, Any]:
    """The variables of a composite network with random heads. Warns."""
    heads = _draw_heads(model, seed)
    drawn = ", ".join(sorted({module for _, module, *_ in heads}))
    modules = sorted({name.rpartition(".")[0] for name in fitted.left_out})
    left_out = f" Left out: {brief(modules)}." if modules else ""
    warn_user(
        f"{source}: only the backbone of the {type(model).__name__} starts from it.{left_out} "
        f"Drawn at random: {drawn}."
    )
    return _composed(model, fitted.variables, heads)


def _fit_composite(
    variables: Mapping[str, Any],
    own: CompositeNetwork,
    model: CompositeNetwork,
    fitting: Fitting,
    source: str,
) -> dict[str, Any]:
    """Fits the variables of a composite network to another one of its class."""
    with _naming_backbone(model):
        backbone = {name: tree[_BACKBONE] for name, tree in variables.items() if _BACKBONE in tree}
        fitted = fit_variables(backbone, own.backbone, model.backbone, fitting, source=source)
    heads = _heads_of(variables)
    if own.num_classes != model.num_classes:
        heads |= _draw_weights_of_classes(own, model, fitting)
    places = _abstract_heads(model)
    if faults := differences(_joined(heads), _joined(places)):
        raise ValueError(f"The weights do not fit this {type(model).__name__}:{in_lines(faults)}")
    heads = {path: jnp.asarray(heads[path], leaf.dtype) for path, leaf in places.items()}
    return _composed(model, fitted.variables, heads)


def _draw_weights_of_classes(
    own: CompositeNetwork, model: CompositeNetwork, fitting: Fitting
) -> _Leaves:
    """New weights for those whose shape depends on the number of classes. Warns.

    Args:
      own: the network of the file.
      model: the network with another number of classes.
      fitting: whether new weights are permitted, and their seed.

    Raises:
      ValueError: new weights are not permitted.
    """
    if not fitting.reset_head:
        raise ValueError(
            f"it has {own.num_classes} classes, the model has {model.num_classes}: load with "
            "reset_head=True to draw new weights for them."
        )
    before = _abstract_heads(own)
    after = _abstract_heads(own.clone(num_classes=model.num_classes))
    changed = {path for path, leaf in after.items() if leaf.shape != before[path].shape}
    layers = sorted({"/".join(path[1:-1]) for path in changed})
    warn_user(
        f"The weights for {own.num_classes} classes of the file are left out, and those for "
        f"{model.num_classes} classes are drawn at random: {', '.join(layers)}."
    )
    drawn = _draw_heads(model, fitting.seed)
    return {path: drawn[path] for path in changed & drawn.keys()}


def _abstract_heads(model: CompositeNetwork) -> _Leaves:
    """Shapes and dtypes of the heads in the training-time structure."""
    return _heads_of(abstract_variables(model.clone(deploy=False)))


def _draw_heads(model: CompositeNetwork, seed: int) -> _Leaves:
    """Initial variables of the heads in the training-time structure."""
    image = abstract_image(model, (32, 32))

    def draw(key: jax.Array) -> _Leaves:
        zeros = jnp.zeros(image.shape, image.dtype)
        return _heads_of(model.clone(deploy=False).init(key, zeros))

    return jax.jit(draw)(jax.random.key(seed))  # the compiler drops the backbone


def _heads_of(variables: Mapping[str, Any]) -> _Leaves:
    flat = traverse_util.flatten_dict(variables)
    return {path: leaf for path, leaf in flat.items() if path[1] != _BACKBONE}


def _joined(leaves: _Leaves) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in leaves.items()}


def _composed(
    model: CompositeNetwork, backbone: Mapping[str, Any], heads: _Leaves
) -> dict[str, Any]:
    """Combines the variables of the backbone and of the training-time heads."""
    nested = {collection: {_BACKBONE: tree} for collection, tree in backbone.items()}
    flat = traverse_util.flatten_dict(nested)
    variables = traverse_util.unflatten_dict({**flat, **heads})
    return reparameterize(variables) if model.deploy else variables
