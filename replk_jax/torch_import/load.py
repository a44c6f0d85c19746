"""From PyTorch files to models with their variables, and back."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from replk_jax.models import registry
from replk_jax.models.description import architecture_in_words
from replk_jax.models.layers import pytorch_init
from replk_jax.torch_import import names
from replk_jax.torch_import.byte_file import naming
from replk_jax.torch_import.convert import (
    convert_state_dict,
    faults,
    places_of,
    to_state_dict,
)
from replk_jax.torch_import.families import family_of, family_of_keys
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure, structure_of
from replk_jax.torch_import.tensors import brief
from replk_jax.torch_import.weights import find_weights
from replk_jax.torch_import.writer import write_safetensors, write_torch

PathLike = str | os.PathLike

TORCH_ENDINGS = (".pth", ".pt", ".bin")  # of the files of torch.save


@dataclasses.dataclass(frozen=True)
class Recognized:
    """The network that a PyTorch file is of, told from names and shapes alone.

    Attributes:
      model: the network; `deploy=True` where the file's is merged.
      name: under which it is registered, or None.
      naming: whose names the tensors have, "official", "torchvision" or "mmpretrain".
      structure: how far it has been re-parameterized.
      place: where in the file the weights lie.
      ignored: names of tensors beside them that belong to other networks.
      faults: tensors that are missing, left over or of another shape, which `load_torch`
        refuses.
    """

    model: nn.Module
    name: str | None
    naming: str
    structure: Structure
    place: str
    ignored: tuple[str, ...]
    faults: tuple[str, ...]

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
            f"  names: {self.naming}; weights: {self.place}",
        ]
        if self.ignored:
            count, names = len(self.ignored), brief(self.ignored)
            lines.append(f"  left out: {count} tensors beside it: {names}")
        return "\n".join(lines)


def infer_architecture(path: PathLike, *, prefer_ema: bool = False) -> Recognized:
    """Tells which network a file is of, from the names and shapes of its tensors.

    RepLKNet, RepVGG, MobileNet V2 and ResNet of any widths, depths and kernels, not only those of
    registered models. What shapes cannot tell gets a default: no stochastic depth, the strides and
    shortcuts that were published, and a backbone emits all its stages.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision or mmpretrain naming.
      prefer_ema: look at the moving average that was saved beside the weights.

    Raises:
      ValueError: a file that cannot be read, or is of no network known here.
      OSError: it cannot be opened.
    """
    with naming(path):
        return recognize(read(path), prefer_ema=prefer_ema)


def load_torch(
    path: PathLike,
    model: nn.Module | None = None,
    *,
    num_classes: int | None = None,
    reset_head: bool = False,
    prefer_ema: bool = False,
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

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision or mmpretrain naming, with
        the weights at the top or in one of the usual wrappers.
      model: what the weights are for; None takes what `infer_architecture` tells. With
        `deploy=True` training-time weights are re-parameterized.
      num_classes: of the model, in place of its own.
      reset_head: draw a new classifier if the file's is for another number of classes.
      prefer_ema: take the moving average that was saved beside the weights.
      seed: of the new classifier.

    Returns:
      The model and its variables. A merged file gives a model with `deploy=True`, with what
      was left of its batch norms folded.

    Raises:
      ValueError: a file that cannot be read or is of another network; in one error all tensors
        that are missing, left over or of the wrong shape.
      OSError: it cannot be opened.
    """
    with naming(path):
        found = find_weights(read(path), prefer_ema=prefer_ema)
        if found.ignored:
            warnings.warn(
                f"{path}: {len(found.ignored)} tensors of other networks are left out: "
                f"{brief(found.ignored)}.",
                stacklevel=2,
            )
        family = family_of_keys(found.tensors)
        weights, _ = family.official_names(found.tensors)
        if model is None:
            model = family.infer_model(weights)
        elif not isinstance(model, family.NETWORK):
            raise ValueError(
                f"its weights are those of a {family.NETWORK.__name__}, and the model is a "
                f"{type(model).__name__}."
            )
        if num_classes is not None:
            if model.out_indices is not None:
                raise ValueError("it is of a backbone, which has no classifier for num_classes.")
            model = model.clone(num_classes=num_classes)
        return model, fit(weights, model, reset_head=reset_head, seed=seed)


def fit(
    weights: Mapping[str, Any], model: nn.Module, *, reset_head: bool, seed: int
) -> dict[str, Any]:
    """Converts weights in official naming for a model whose classifier may be another.

    Args, Raises: as in `load_torch`.
    """
    return convert_state_dict(_fit_head(weights, model, reset_head, seed), model)


def save_torch(
    variables: Mapping[str, Any], model: nn.Module, path: PathLike, *, merged: bool = False
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

    Raises:
      ValueError: variables of another model, a network or structure that the official code does
        not have, or an ending that tells no format.
    """
    state_dict = to_state_dict(variables, model, merged=merged)
    ending = os.path.splitext(path)[1].lower()
    if ending == ".safetensors":
        write_safetensors(path, state_dict, {"format": "pt"})
    elif ending in TORCH_ENDINGS:
        write_torch(path, state_dict)
    else:
        raise ValueError(f"{path}: the name must end in .pth, .pt, .bin or .safetensors.")


def recognize(contents: Any, *, prefer_ema: bool = False) -> Recognized:
    """`infer_architecture` of what `read` gave; its errors do not name the file.

    Raises:
      ValueError: no network known here.
    """
    found = find_weights(contents, prefer_ema=prefer_ema)
    family = family_of_keys(found.tensors)
    weights, naming = family.official_names(found.tensors)
    model = family.infer_model(weights)
    return Recognized(
        model=model,
        name=registry.name_of(model.architecture),
        naming=naming,
        structure=structure_of(weights),
        place=found.place,
        ignored=found.ignored,
        faults=tuple(faults(weights, model)),
    )


def _fit_head(
    weights: Mapping[str, Any], model: nn.Module, reset_head: bool, seed: int
) -> dict[str, Any]:
    """Without the final layers that the model has not, and with a new classifier if asked."""
    weights = dict(weights)
    if model.out_indices is not None or model.num_classes is None:
        final = _keys(model.clone(num_classes=1, out_indices=None)) - _keys(model)
        return {key: value for key, value in weights.items() if key not in final}
    official_key = family_of(model).official_key
    kernel, bias = (
        official_key(f"{model.head_name}.{last}", model.architecture) for last in ("weight", "bias")
    )
    # One that is of no shape at all is left to the check of all shapes.
    if kernel in weights and weights[kernel].shape[:1] in ((), (model.num_classes,)):
        return weights
    held = f"has {weights[kernel].shape[0]} classes" if kernel in weights else "is not there"
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
    _, leaf = places_of(model, Structure.TRAINING)[kernel]
    width, classes = leaf.shape
    for name, shape in ((kernel, (classes, width)), (bias, (classes,))):
        key = jax.random.fold_in(jax.random.key(seed), len(shape))
        weights[name] = np.asarray(pytorch_init(width)(key, shape))
    return weights


def _keys(model: nn.Module) -> set[str]:
    """The official names of a training-time network's tensors."""
    keys = places_of(model, Structure.TRAINING)
    return {*keys, *names.counters(keys)}
