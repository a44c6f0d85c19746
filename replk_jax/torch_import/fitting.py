"""Fits weights to a model whose classifier or input channels may be others."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from replk_jax.io.tensors import TensorLike
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.layers import pytorch_init
from replk_jax.torch_import import names
from replk_jax.torch_import.convert import by_official_name, convert_state_dict, places_of
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.structures import Structure


@dataclasses.dataclass(frozen=True)
class Fitting:
    """What may be done to weights so that they fit a model.

    Attributes:
      reset_head: draw a new classifier if the weights' is for another number of classes.
      adapt_input: make the kernels that see the image take the model's number of channels, as
        `in_channels` of `load_torch` does.
      seed: of the new classifier.
    """

    reset_head: bool = False
    adapt_input: bool = False
    seed: int = 0


class Fitted(NamedTuple):
    """Weights that fit a model.

    Attributes:
      variables: of the model.
      left_out: official names of the weights that the model has no place for: a classifier, and
        for a backbone all that follows its last stage.
    """

    variables: dict[str, Any]
    left_out: tuple[str, ...]


def fit(
    weights: Mapping[str, TensorLike], model: Backbone, fitting: Fitting, *, source: str
) -> Fitted:
    """Converts weights to the variables of a model.

    Args:
      weights: in official naming.
      model: what they are for.
      fitting: what may be done to them.
      source: what warnings call the file.

    Raises:
      ValueError: as `load_torch`.
    """
    weights = family_of(model).names_in(weights, model)
    weights = _fit_input(weights, model, fitting.adapt_input, source)
    fitted = _fit_head(weights, model, fitting)
    left_out = tuple(name for name in weights if name not in fitted)
    return Fitted(convert_state_dict(fitted, model), left_out)


def fit_variables(
    variables: Mapping[str, Any], own: Backbone, model: Backbone, fitting: Fitting, *, source: str
) -> Fitted:
    """Fits the variables of a network to another model of the same family.

    Args:
      variables: of `own`.
      own: the network that they are of.
      model, fitting, source: as in `fit`.

    Raises:
      ValueError: as `load_torch`.
    """
    return fit(by_official_name(variables, own), model, fitting, source=source)


def _fit_head(
    weights: Mapping[str, TensorLike], model: Backbone, fitting: Fitting
) -> dict[str, TensorLike]:
    """Without the final layers that the model lacks, and with a new classifier if asked."""
    if model.out_indices is not None or model.num_classes is None:
        final = _keys(model.clone(num_classes=1, out_indices=None)) - _keys(model)
        kept = names.without_classifier(weights)
        return {name: value for name, value in kept.items() if name not in final}
    official_key = family_of(model).official_key
    kernel, bias = (
        official_key(f"{model.head_name}.{last}", model.architecture) for last in ("weight", "bias")
    )
    is_linear = bias in weights and kernel in weights and len(weights[kernel].shape) == 2
    fits = kernel in weights and weights[kernel].shape[:1] in ((), (model.num_classes,))
    # Another kind of classifier is left to the check of all shapes, unless a new one is wanted.
    if fits and (is_linear or not fitting.reset_head):
        return dict(weights)
    held = _describe_classifier(weights, kernel, bias)
    if not fitting.reset_head:
        raise ValueError(
            f"its classifier {held}, the model has {model.num_classes}: load with reset_head=True "
            "to draw a new one, or set num_classes."
        )
    warn_user(
        f"The classifier of the file, which {held}, is left out, and one of "
        f"{model.num_classes} classes is drawn at random."
    )
    return names.without_classifier(weights) | _draw_classifier(model, kernel, bias, fitting.seed)


def _describe_classifier(weights: Mapping[str, TensorLike], kernel: str, bias: str) -> str:
    """What is said of a classifier that does not fit.

    Args:
      weights: of the network.
      kernel, bias: names of the weights that a linear one has.
    """
    if bias in weights and kernel in weights and len(weights[kernel].shape) == 2:
        return f"has {weights[kernel].shape[0]} classes"
    parts = sorted(weights.keys() - names.without_classifier(weights).keys())
    if not parts:
        return "is not there"
    missing = [name for name in (kernel, bias) if name not in weights]
    problem = f"{missing[0]} is missing" if missing else f"{kernel} is no matrix"
    return f"is of another kind ({problem}; there are {brief(parts)})"


def _draw_classifier(model: Backbone, kernel: str, bias: str, seed: int) -> dict[str, np.ndarray]:
    """Initial weights of a classifier, in PyTorch's layout."""
    _, leaf = places_of(model, Structure.TRAINING)[kernel]
    width, classes = leaf.shape
    draw = pytorch_init(width)
    return {
        name: np.asarray(draw(jax.random.fold_in(jax.random.key(seed), len(shape)), shape))
        for name, shape in ((kernel, (classes, width)), (bias, (classes,)))
    }


def _fit_input(
    weights: Mapping[str, TensorLike], model: Backbone, adapt: bool, source: str
) -> dict[str, TensorLike]:
    """The weights with the kernels that see the image made for the model's number of channels.

    Raises:
      ValueError: they are for another number, and `adapt` is not set.
    """
    wanted = model.in_channels
    fitted = dict(weights)
    structure = family_of(model).STRUCTURES.structure_of(weights)
    for key, (_, leaf) in places_of(model, structure).items():
        shape = names.torch_shape(leaf.shape)
        held = weights[key].shape if key in weights else ()
        same_but_inputs = len(held) == 4 and (held[0], *held[2:]) == (shape[0], *shape[2:])
        if not same_but_inputs or held == shape or shape[1] != wanted or not held[1]:
            continue
        if not adapt:
            raise ValueError(
                f"{key} takes {held[1]} channels, the model has in_channels={wanted}. To have "
                f"it made to take {wanted}, load with in_channels={wanted} (load_into: "
                "adapt_input=True; in training --config.init_adapt_input)."
            )
        fitted[key] = _other_inputs(np.asarray(weights[key]), wanted)
        warn_user(f"{source}: {key} takes {held[1]} channels, and is made to take {wanted}.")
    return fitted


def _other_inputs(kernel: np.ndarray, count: int) -> np.ndarray:
    """A kernel (out, in, rows, columns) for another number of inputs.

    Summed for one input. Otherwise the inputs are repeated in turn and scaled, so that an image
    with the same values in every channel gives what it gave before, where the old number divides
    the new one. timm does the same.
    """
    if count == 1:
        return kernel.sum(1, keepdims=True, dtype=np.float32).astype(kernel.dtype)
    held = kernel.shape[1]
    repeated = np.tile(kernel, (1, -(-count // held), 1, 1))[:, :count]
    return (repeated.astype(np.float32) * (held / count)).astype(kernel.dtype)


def _keys(model: Backbone) -> set[str]:
    """The official names of a training-time network's tensors."""
    keys = places_of(model, Structure.TRAINING)
    return {*keys, *names.counters(keys)}
