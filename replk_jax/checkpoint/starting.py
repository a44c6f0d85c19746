"""Fits the variables of one network to another, which starts from them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from flax import traverse_util

from replk_jax.checkpoint.record import Checkpoint
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.composite_fitting import draw_heads, fit_classes, heads_of, with_backbone
from replk_jax.models.fitting import Fitted, Fitting, fit_variables
from replk_jax.models.network import Network
from replk_jax.models.variables import by_path, conform
from replk_jax.reparam import reparameterize
from replk_jax.torch_import import Contents, Selection, load_contents, network_class


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
) -> tuple[Network, dict[str, Any]]:
    """Fits the weights of a PyTorch file to a model, or to the backbone of a composite one.

    Args:
      contents: of the file.
      model: of the class of the file's network, or a composite network with a backbone of its
        family.
      selection: which weights of the file to read.
      fitting: the permitted changes to them.
      source: name of the file, for warnings.

    Returns:
      The network that received the weights, and the variables of the model.

    Raises:
      ValueError: as `load_torch`.
    """
    load = partial(load_contents, contents, selection=selection, source=source)
    if not isinstance(model, CompositeNetwork) or isinstance(
        model, network_class(contents, selection)
    ):
        own, fitted = load(model, fitting=fitting)
        return own, fitted.variables
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
    heads = draw_heads(model, seed)
    drawn = ", ".join(sorted({path.split("/")[1] for path in heads}))
    left_out = f" Left out: {brief(list(fitted.left_out))}." if fitted.left_out else ""
    new = f" With initial values: {brief(list(fitted.initialized))}." if fitted.initialized else ""
    warn_user(
        f"{source}: only the backbone of the {type(model).__name__} starts from it.{left_out}{new} "
        f"Drawn at random: {drawn}."
    )
    leaves = with_backbone(fitted.variables, heads)
    variables = traverse_util.unflatten_dict(leaves, sep="/")
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
        backbone = {
            name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree
        }
        fitted = fit_variables(backbone, training.backbone, fitting, source=source)
    leaves = with_backbone(fitted.variables, heads_of(variables))
    unflattened = traverse_util.unflatten_dict(leaves, sep="/")
    composed = fit_classes(unflattened, own, training, fitting)
    return reparameterize(composed) if model.deploy else composed
