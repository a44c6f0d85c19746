"""From PyTorch files to models with their variables, and back."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from replk_jax.io.errors import naming
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.text import brief
from replk_jax.models import registry
from replk_jax.models.description import architecture_in_words
from replk_jax.models.layers import pytorch_init
from replk_jax.torch_import import names
from replk_jax.torch_import.convert import (
    convert_state_dict,
    faults,
    places_of,
    to_state_dict,
)
from replk_jax.torch_import.entries import ANY, Selection
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.weights import Weights, find_weights
from replk_jax.torch_import.writer import write_torch

PathLike = str | os.PathLike

TORCH_ENDINGS = (".pth", ".pt", ".bin")  # of the files of torch.save


@dataclasses.dataclass(frozen=True)
class Recognized:
    """The network that a PyTorch file is of, as its tensors' names and shapes identify it.

    Attributes:
      model: the network; `deploy=True` where the file's is merged.
      name: under which it is registered, or None.
      naming: whose names the tensors have, "official", "torchvision", "mmpretrain" or "timm".
      structure: how far it has been re-parameterized.
      place: where in the file the weights are.
      ignored: names of tensors beside them that belong to other networks.
      faults: tensors that are missing, left over or of another shape, with which `load_torch`
        raises an error.
      assumed: what names and shapes do not determine, and what is assumed of it.
      is_ema: whether the weights are an exponential moving average (EMA).
      has_ema: whether the file holds an EMA, of these or other weights.
    """

    model: nn.Module
    name: str | None
    naming: str
    structure: Structure
    place: str
    ignored: tuple[str, ...]
    faults: tuple[str, ...]
    assumed: str
    is_ema: bool
    has_ema: bool

    def __str__(self) -> str:
        model = self.model
        kind = f"{model.num_classes} classes" if model.num_classes else "no classifier"
        if model.out_indices is not None:
            normed = getattr(model, "norm_intermediate_features", False)  # RepLKNet's own
            norms = " with a norm each" if normed else ""
            kind = f"backbone of {len(model.out_indices)} stages{norms}"
        lines = [
            f"{self.name or type(model).__name__}, {kind}, {self.structure.value}",
            f"  {architecture_in_words(model)}",
            f"  names: {self.naming}; weights: {self.place}{', an EMA' if self.is_ema else ''}",
            f"  assumed, since a file does not tell it: {self.assumed}",
        ]
        if self.ignored:
            count, names = len(self.ignored), brief(self.ignored)
            lines.append(f"  left out: {count} tensors beside it: {names}")
        return "\n".join(lines)


def infer_architecture(
    path: PathLike,
    *,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Recognized:
    """Identifies the network of a file by the names and shapes of its tensors.

    RepLKNet, RepVGG, MobileNet V2 and ResNet of any widths, depths and kernels, not only those of
    registered models. What shapes cannot tell gets a default: no stochastic depth, the strides and
    shortcuts that were published, and a backbone emits all its stages.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision, mmpretrain or timm naming.
      prefer_ema, key, prefix, rename: as in `load_torch`.

    Raises:
      ValueError: a file that cannot be read, or is of no network known here.
      OSError: it cannot be opened.
    """
    with naming(path):
        return recognize(read(path), Selection(prefer_ema, key, prefix, rename))


def load_torch(
    path: PathLike,
    model: nn.Module | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    reset_head: bool = False,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a PyTorch checkpoint, without PyTorch and without running what is in it.

        model, variables = load_torch("RepLKNet-31B_ImageNet-1K_224.pth")
        logits = model.apply(variables, images)

    Strict: every tensor of the network is used and every variable filled. Two things are left
    out where the model has no place for them: a classifier, for a model without
    (`num_classes=None`), and all that follows the last stage, for a backbone (`out_indices`).
    Tensors of other networks in the file, such as a segmenter's decoder, are left out with a
    warning.

    The state dict may be in any entry of the file, and its names may have any prefix. A file
    that holds several networks needs `key` or `prefix` to choose one.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision, mmpretrain or timm naming.
      model: what the weights are for; None takes what `infer_architecture` identifies. With
        `deploy=True` training-time weights are re-parameterized.
      num_classes: of the model, in place of its own; 0 for no classifier.
      in_channels: channels of the images, in place of those that the file's network takes. For
        one channel the first kernel is summed over its inputs; for other numbers its inputs are
        repeated in turn and scaled to keep their sum, as timm does. This is reported by a warning.
      reset_head: draw a new classifier if the file's is for another number of classes.
      prefer_ema: take the exponential moving average (EMA) that was saved with the weights.
      key: of the entry that holds the state dict, such as "model"; of an entry within another
        one, "checkpoint/model".
      prefix: of the names of the network's tensors, such as "encoder."; it is removed.
      rename: from the name of a tensor, after the prefix, to its name in a naming that is known
        here; None in place of a name leaves the tensor out.
      seed: of the new classifier.

    Returns:
      The model and its variables. A merged file gives a model with `deploy=True`, with what
      was left of its batch norms folded.

    Raises:
      ValueError: a file that cannot be read, is of another network or holds several; in one error
        all tensors that are missing, left over or of the wrong shape.
      OSError: it cannot be opened.
    """
    with naming(path):
        return load_contents(
            read(path),
            model,
            selection=Selection(prefer_ema, key, prefix, rename),
            source=os.fspath(path),
            num_classes=num_classes,
            in_channels=in_channels,
            reset_head=reset_head,
            seed=seed,
        )


def load_contents(
    contents: Any,
    model: nn.Module | None = None,
    *,
    selection: Selection,
    source: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    adapt_input: bool = False,
    reset_head: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """`load_torch` of what `read` gave; its errors do not name the file.

    Args:
      contents: of the file.
      selection: which weights of it to take.
      source: what warnings call the file.
      adapt_input: as `in_channels`, for the number of channels of `model`.
      model, num_classes, in_channels, reset_head, seed: as in `load_torch`.

    Raises:
      ValueError: as `load_torch`.
    """
    found = find_weights(contents, selection)
    family = found.family
    _warn_of_what_is_there(found, selection, source, strides_assumed=model is None)
    weights, _ = _official(found)
    if model is None:
        # A classifier that is to be replaced may be of any kind.
        kept = _without_classifier(weights) if reset_head or num_classes == 0 else weights
        model = family.infer_model(kept)
        if reset_head and num_classes is None:
            raise ValueError(
                "reset_head=True draws a new classifier: say for how many num_classes."
            )
    elif not isinstance(model, family.NETWORK):
        raise ValueError(
            f"its weights are those of a {family.NETWORK.__name__}, and the model is a "
            f"{type(model).__name__}."
        )
    if num_classes is not None:
        if model.out_indices is not None:
            raise ValueError("it is of a backbone, which has no classifier for num_classes.")
        model = model.clone(num_classes=num_classes or None)
    if in_channels is not None:
        model, adapt_input = _with_in_channels(model, in_channels), True
    return model, fit(
        weights,
        model,
        source=source,
        adapt_input=adapt_input,
        reset_head=reset_head,
        seed=seed,
    )


def fit(
    weights: Mapping[str, Any],
    model: nn.Module,
    *,
    source: str,
    adapt_input: bool,
    reset_head: bool,
    seed: int,
) -> dict[str, Any]:
    """Converts weights for a model whose classifier and input channels may be others.

    Args:
      weights: in official naming.
      model: what they are for.
      source: what warnings call the file.
      adapt_input: make the kernels that see the image take the model's number of channels, as
        `in_channels` of `load_torch` does.
      reset_head, seed: as in `load_torch`.

    Raises:
      ValueError: as `load_torch`.
    """
    weights = family_of(model).names_in(weights, model)
    weights = _fit_input(weights, model, adapt_input, source)
    return convert_state_dict(_fit_head(weights, model, reset_head, seed), model)


def save_torch(
    variables: Mapping[str, Any],
    model: nn.Module,
    path: PathLike,
    *,
    merged: bool = False,
    naming: str = "official",
) -> None:
    """Writes the state dict of the official code (torchvision's, of MobileNet V2 and ResNet).

    It loads there strictly, into a network of the same sizes if that code can build one:
    torchvision has 3 x 3 kernels, and one width of each ResNet.

    Args:
      variables: of `model`.
      model: with `deploy=False`; a RepVGG's may be merged, as the official one.
      path: .pth, .pt or .bin, for `torch.load`; or .safetensors. A file that is there is
        replaced when the new one is complete.
      merged: as after RepLKNet's `structural_reparam()`, for a network that is built with
        `small_kernel_merged=True`, or after RepVGG's `switch_to_deploy()`, for one that is built
        with `deploy=True`.
      naming: "official", or "timm" for the names of the same network in timm, which has RepVGG,
        MobileNet V2 and ResNet.

    Raises:
      ValueError: variables of another model, a network or structure that the official code or
        timm does not have, another naming, or an ending that is of no format.
    """
    state_dict = to_state_dict(variables, model, merged=merged)
    if naming == "timm":
        state_dict = family_of(model).timm_names(state_dict, model.architecture)
    elif naming != "official":
        raise ValueError(f'naming must be "official" or "timm"; got {naming!r}.')
    ending = os.path.splitext(path)[1].lower()
    if ending == ".safetensors":
        write_safetensors(path, state_dict, {"format": "pt"})
    elif ending in TORCH_ENDINGS:
        write_torch(path, state_dict)
    else:
        raise ValueError(f"{path}: the name must end in .pth, .pt, .bin or .safetensors.")


def recognize(contents: Any, selection: Selection = ANY) -> Recognized:
    """`infer_architecture` of what `read` gave; its errors do not name the file.

    Raises:
      ValueError: no network known here.
    """
    found = find_weights(contents, selection)
    family = found.family
    weights, naming = _official(found)
    try:
        model = family.infer_model(weights)
    except ValueError:
        without = _without_classifier(weights)
        if without.keys() == weights.keys():
            raise
        model = family.infer_model(without)  # the classifier is among the faults
    return Recognized(
        model=model,
        name=registry.name_of(model),
        naming=naming,
        structure=family.STRUCTURES.structure_of(weights),
        place=found.place,
        ignored=found.ignored,
        faults=tuple(faults(weights, model)),
        assumed=family.ASSUMED,
        is_ema=found.is_ema,
        has_ema=found.has_ema,
    )


def _official(found: Weights) -> tuple[dict[str, Any], str]:
    """The weights by official names, and whose names they had."""
    weights, naming = found.family.official_names(found.tensors)
    return names.with_classifier_called(weights, found.family.CLASSIFIER), naming


def _warn_of_what_is_there(
    found: Weights, selection: Selection, source: str, *, strides_assumed: bool
) -> None:
    if found.ignored:
        text = (
            f"{source}: {len(found.ignored)} tensors of other networks are left out: "
            f"{brief(found.ignored)}."
        )
        if strides_assumed and found.ignores_convolutions:
            text += (
                " The backbone of a segmenter or detector may have other strides than those "
                f"assumed ({found.family.ASSUMED}): if so, pass a model with its output_stride."
            )
        warnings.warn(text, stacklevel=4)
    if found.is_ema and not selection.prefer_ema:
        warnings.warn(
            f"{source}: it holds only an EMA of the weights ({found.place}), which is loaded.",
            stacklevel=4,
        )


def _fit_head(
    weights: Mapping[str, Any], model: nn.Module, reset_head: bool, seed: int
) -> dict[str, Any]:
    """Without the final layers that the model has not, and with a new classifier if asked."""
    weights = dict(weights)
    if model.out_indices is not None or model.num_classes is None:
        final = _keys(model.clone(num_classes=1, out_indices=None)) - _keys(model)
        return {k: v for k, v in _without_classifier(weights).items() if k not in final}
    official_key = family_of(model).official_key
    kernel, bias = (
        official_key(f"{model.head_name}.{last}", model.architecture) for last in ("weight", "bias")
    )
    is_linear = bias in weights and kernel in weights and len(weights[kernel].shape) == 2
    fits = kernel in weights and weights[kernel].shape[:1] in ((), (model.num_classes,))
    # Another kind of classifier is left to the check of all shapes, unless a new one is wanted.
    if fits and (is_linear or not reset_head):
        return weights
    parts = sorted(weights.keys() - _without_classifier(weights).keys())
    if is_linear:
        held = f"has {weights[kernel].shape[0]} classes"
    elif not parts:
        held = "is not there"
    else:
        missing = [name for name in (kernel, bias) if name not in weights]
        problem = f"{missing[0]} is missing" if missing else f"{kernel} is no matrix"
        held = f"is of another kind ({problem}; there are {brief(parts)})"
    if not reset_head:
        raise ValueError(
            f"its classifier {held}, the model has {model.num_classes}: load with reset_head=True "
            "to draw a new one, or set num_classes."
        )
    warnings.warn(
        f"The classifier of the file, which {held}, is left out, and one of "
        f"{model.num_classes} classes is drawn at random.",
        stacklevel=3,
    )
    weights = _without_classifier(weights)
    _, leaf = places_of(model, Structure.TRAINING)[kernel]
    width, classes = leaf.shape
    for name, shape in ((kernel, (classes, width)), (bias, (classes,))):
        key = jax.random.fold_in(jax.random.key(seed), len(shape))
        weights[name] = np.asarray(pytorch_init(width)(key, shape))
    return weights


def _without_classifier(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights without all that is in a module with the name of a classifier."""
    return {name: value for name, value in weights.items() if not names.CLASSIFIER.match(name)}


def _with_in_channels(model: nn.Module, in_channels: int) -> nn.Module:
    if type(in_channels) is not int or in_channels < 1:
        raise ValueError(f"in_channels must be a positive integer; got {in_channels!r}.")
    return model.clone(
        architecture=dataclasses.replace(model.architecture, in_channels=in_channels)
    )


def _fit_input(
    weights: Mapping[str, Any], model: nn.Module, adapt: bool, source: str
) -> Mapping[str, Any]:
    """The weights with the kernels that see the image made for the model's number of channels.

    Raises:
      ValueError: they are for another number, and `adapt` is not set.
    """
    fitted, wanted = dict(weights), model.in_channels
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
        warnings.warn(
            f"{source}: {key} takes {held[1]} channels, and is made to take {wanted}.",
            stacklevel=4,
        )
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


def _keys(model: nn.Module) -> set[str]:
    """The official names of a training-time network's tensors."""
    keys = places_of(model, Structure.TRAINING)
    return {*keys, *names.counters(keys)}
