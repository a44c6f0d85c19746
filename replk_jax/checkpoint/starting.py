"""Fits the variables of one network to another, which starts from them."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
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
from replk_jax.models.fitting import Fitted, Fitting, fit_variables
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_image, abstract_variables, by_path, conform
from replk_jax.reparam import reparameterize
from replk_jax.torch_import import Contents, Selection, load_contents

_BACKBONE = "backbone"
_Leaves = dict[str, Any]  # flattened variables, by paths such as "params/decode_head/bias"


def fit_network(
    loaded: Checkpoint, model: Network, fitting: Fitting, *, source: str
) -> dict[str, Any]:
    """Fits the variables of a network of this package to a model.

    Args:
      loaded: the network of the file.
      model: a network of the same class, or a composite network with a backbone of that class. For
        a merged file, a merged network with the same variables.
      fitting: the permitted changes to the variables.
      source: name of the file, for warnings.

    Returns:
      The variables of the model.

    Raises:
      ValueError: a network of another class, or variables that do not fit.
    """
    own, variables = loaded.model, loaded.variables
    if own.deploy:
        return _fit_merged(variables, own, model)
    if isinstance(model, Backbone) and type(own) is type(model):
        return fit_variables(variables, model, fitting, source=source).variables
    wanted = f"a {type(model).__name__}"
    if isinstance(model, CompositeNetwork):
        backbone = model.backbone
        if isinstance(own, CompositeNetwork) and type(own) is type(model):
            return _fit_composite(variables, own, model, fitting, source)
        if isinstance(own, Backbone) and type(own) is type(backbone):
            of_backbone = dataclasses.replace(fitting, adapt_stage_norms=True)
            with _naming_backbone(model):
                fitted = fit_variables(variables, backbone, of_backbone, source=source)
            return _start_from_backbone(model, fitted, fitting.seed, source)
        wanted += f" or its backbone, a {type(backbone).__name__}"
    raise ValueError(f"it holds a {type(own).__name__}, not {wanted}.")


def _fit_merged(variables: Mapping[str, Any], own: Network, model: Network) -> dict[str, Any]:
    """Converts the variables of a merged network to those of a merged model, without changes."""
    if not model.deploy:
        raise ValueError(
            "it is re-parameterized, and merged weights cannot be trained further: give the file "
            "from before the merge."
        )
    if type(own) is not type(model):
        raise ValueError(
            f"it holds a re-parameterized {type(own).__name__}, not a {type(model).__name__}."
        )
    return conform(by_path(variables), model)


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
    load = partial(load_contents, contents, selection=selection, source=source)
    if not isinstance(model, CompositeNetwork):
        backbone, fitted = load(model, fitting=fitting)
        return backbone, fitted.variables
    of_backbone = dataclasses.replace(fitting, adapt_stage_norms=True)
    with _naming_backbone(model):
        backbone, fitted = load(model.backbone, fitting=of_backbone)
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
    drawn = ", ".join(sorted({path.split("/")[1] for path in heads}))
    left_out = f" Left out: {brief(list(fitted.left_out))}." if fitted.left_out else ""
    new = f" With initial values: {brief(list(fitted.initialized))}." if fitted.initialized else ""
    warn_user(
        f"{source}: only the backbone of the {type(model).__name__} starts from it.{left_out}{new} "
        f"Drawn at random: {drawn}."
    )
    variables = traverse_util.unflatten_dict(_composed(fitted.variables, heads), sep="/")
    return reparameterize(variables) if model.deploy else variables


def _fit_composite(
    variables: Mapping[str, Any],
    own: CompositeNetwork,
    model: CompositeNetwork,
    fitting: Fitting,
    source: str,
) -> dict[str, Any]:
    """Fits the variables of a composite network to another one of its class."""
    if type(own.backbone) is not type(model.backbone):
        raise ValueError(
            f"it holds a {type(own).__name__} with a {type(own.backbone).__name__} as its "
            f"backbone, not a {type(model.backbone).__name__}."
        )
    training = model.clone(deploy=False)
    with _naming_backbone(model):
        backbone = {name: tree[_BACKBONE] for name, tree in variables.items() if _BACKBONE in tree}
        fitted = fit_variables(backbone, training.backbone, fitting, source=source)
    heads = _heads_of(variables)
    if own.num_classes != model.num_classes:
        heads = _with_classes_of(model, heads, own, fitting)
    composed = conform(_composed(fitted.variables, heads), training)
    return reparameterize(composed) if model.deploy else composed


def _with_classes_of(
    model: CompositeNetwork, heads: _Leaves, own: CompositeNetwork, fitting: Fitting
) -> _Leaves:
    """Replaces the weights whose presence or shape depends on the number of classes. Warns.

    Args:
      model: the network with another number of classes.
      heads: of the file.
      own: the network of the file.
      fitting: whether new weights are permitted, and their seed.

    Raises:
      ValueError: there are new weights, and they are not permitted.
    """
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
    drawn = _draw_heads(model, fitting.seed) if new else {}
    kept = {path: leaf for path, leaf in heads.items() if path not in replaced}
    return kept | {path: drawn[path] for path in new & drawn.keys()}


def _classes(network: Network) -> str:
    """The number of classes, in words."""
    return f"{network.num_classes or 'no'} classes"


def _changed(leaves: _Leaves, others: _Leaves) -> set[str]:
    """The paths of leaves that the others lack, or have in another shape."""
    return {
        path
        for path, leaf in leaves.items()
        if path not in others or others[path].shape != leaf.shape
    }


def _layers(paths: Iterable[str]) -> str:
    """The modules of leaves, as a list in a sentence."""
    return ", ".join(sorted({path.partition("/")[2].rpartition("/")[0] for path in paths}))


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
    leaves = by_path(variables).items()
    return {path: leaf for path, leaf in leaves if path.split("/")[1] != _BACKBONE}


def _composed(backbone: Mapping[str, Any], heads: _Leaves) -> _Leaves:
    """Combines the variables of a backbone and of heads."""
    nested = {collection: {_BACKBONE: tree} for collection, tree in backbone.items()}
    return by_path(nested) | heads
