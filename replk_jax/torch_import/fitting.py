"""Fits weights to a model that may differ in classes or input channels."""

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
    """The permitted changes to weights.

    Attributes:
      reset_head: draw a new classifier if the number of classes differs.
      adapt_input: adapt the kernels that see the image to the model's number of channels, like
        `in_channels` of `load_torch`.
      seed: of the new classifier.
    """

    reset_head: bool = False
    adapt_input: bool = False
    seed: int = 0


class Fitted(NamedTuple):
    """Weights fitted to a model.

    Attributes:
      variables: of the model.
      left_out: official names of unused weights: of a classifier, and for a backbone of everything
        after its last stage.
    """

    variables: dict[str, Any]
    left_out: tuple[str, ...]


def fit(
    weights: Mapping[str, TensorLike], model: Backbone, fitting: Fitting, *, source: str
) -> Fitted:
    """Converts weights to the variables of a model.

    Args:
      weights: by official names.
      model: the network to load into.
      fitting: the permitted changes.
      source: name of the file, for warnings.

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
      own: the network to read from.
      model, fitting, source: as in `fit`.

    Raises:
      ValueError: as `load_torch`.
    """
    return fit(by_official_name(variables, own), model, fitting, source=source)


def _fit_head(
    weights: Mapping[str, TensorLike], model: Backbone, fitting: Fitting
) -> dict[str, TensorLike]:
    """Removes final layers that the model lacks, and draws a new classifier if permitted."""
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
    # The later check of all shapes reports another kind of classifier, unless it is replaced.
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
    """Describes a classifier that does not fit, for an error.

    Args:
      weights: of the network.
      kernel, bias: names of the weights of a linear classifier.
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
    """Adapts the kernels that see the image to the model's number of channels.

    Raises:
      ValueError: the number differs, and `adapt` is not set.
    """
    wanted = model.in_channels
    fitted = dict(weights)
    structure = family_of(model).STRUCTURES.structure_of(weights)
    for key, (_, leaf) in places_of(model, structure).items():
        held = _input_channels(weights.get(key), names.torch_shape(leaf.shape), wanted)
        if held in (None, wanted):
            continue
        if not adapt:
            raise ValueError(
                f"{key} takes {held} channels, the model has in_channels={wanted}. To adapt it to "
                f"{wanted} channels, load with in_channels={wanted} (load_into: adapt_input=True; "
                "in training --config.init_adapt_input)."
            )
        fitted[key] = _other_inputs(np.asarray(weights[key]), wanted)
        warn_user(f"{source}: {key} takes {held} channels, and is adapted to {wanted}.")
    return fitted


def _input_channels(
    tensor: TensorLike | None, shape: tuple[int, ...], in_channels: int
) -> int | None:
    """Input channels of a kernel; None unless it sees the image.

    Args:
      tensor: of the file, in PyTorch's layout.
      shape: in the model.
      in_channels: of the model.
    """
    if tensor is None or len(tensor.shape) != 4 or len(shape) != 4 or shape[1] != in_channels:
        return None
    out, held, *window = tensor.shape
    return held if held and (out, *window) == (shape[0], *shape[2:]) else None


def _other_inputs(kernel: np.ndarray, count: int) -> np.ndarray:
    """Adapts a kernel (out, in, rows, columns) to another number of input channels, as timm does.

    For one channel it sums over the inputs. Otherwise it repeats the inputs in turn and scales
    them. If the old number divides the new one, an image with equal channels gives the same output
    as before.
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
