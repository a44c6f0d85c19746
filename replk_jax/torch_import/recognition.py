"""Identifies the network of a PyTorch file by the names and shapes of its tensors."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from replk_jax.io.errors import naming
from replk_jax.io.text import brief
from replk_jax.models import registry
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.in_words import details_of, title_of
from replk_jax.models.network import Network
from replk_jax.torch_import.composites import split
from replk_jax.torch_import.convert import faults
from replk_jax.torch_import.entries import ANY, Selection
from replk_jax.torch_import.names import without_classifier
from replk_jax.torch_import.places import structure_of
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.settings import find_settings
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.torch_files import Contents
from replk_jax.torch_import.weights import Weights, find_weights


@dataclasses.dataclass(frozen=True)
class Recognized:
    """The network in a PyTorch file, identified by the names and shapes of its tensors.

    Attributes:
      model: the network; `deploy=True` if the file is merged.
      name: the registered name, or None.
      naming: "official", "torchvision", "mmpretrain" or "timm"; of a composite network, that of
        its backbone.
      structure: the degree of re-parameterization.
      place: location of the weights in the file, in words.
      ignored: names of tensors of other networks in the same state dict.
      faults: tensors that are missing, unexpected or of another shape, which `load_torch` rejects.
      assumed: what names and shapes do not determine and the importer assumes, in words; empty if
        the file's configuration or name determines it all.
      is_ema: whether the weights are an exponential moving average (EMA).
      has_ema: whether the file has an EMA of any weights.
    """

    model: Network
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
        lines = [
            f"{title_of(model)}, {_kind(model)}, {self.structure.value}",
            *(f"  {line}" for line in details_of(model)),
            f"  names: {self.naming}; weights: {self.place}{', an EMA' if self.is_ema else ''}",
        ]
        if self.assumed:
            lines.append(f"  assumed, since a file does not record it: {self.assumed}")
        if self.ignored:
            count, names = len(self.ignored), brief(self.ignored)
            lines.append(f"  left out: {count} tensors beside it: {names}")
        return "\n".join(lines)


def _kind(model: Network) -> str:
    """The number of classes, or the outputs of a backbone, in words."""
    if isinstance(model, Backbone) and model.out_indices is not None:
        normed = getattr(model, "norm_intermediate_features", False)  # RepLKNet's own
        norms = " with a norm each" if normed else ""
        return f"backbone of {len(model.out_indices)} stages{norms}"
    return f"{model.num_classes} classes" if model.num_classes else "no classifier"


def infer_architecture(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Recognized:
    """Identifies the network of a file by the names and shapes of its tensors.

    It supports RepLKNet, RepVGG, MobileNet V2 and ResNet of any widths, depths and kernel sizes,
    and on them mmsegmentation's networks with UPerNet, PSPNet, DeepLabv3, DeepLabv3+ and FCN heads,
    and mmdetection's FCOS, and Faster, Mask and Cascade R-CNN.
    Properties that shapes do not determine have defaults: no stochastic depth, the published
    strides and shortcuts, and a backbone that returns all its stages. Those of a segmenter or
    detector are taken from the configuration in the file or the name of a published file, as far as
    they say.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision, mmpretrain or timm naming.
      prefer_ema, key, prefix, rename: as in `load_torch`.

    Raises:
      ValueError: a file that cannot be read, or of an unsupported network.
      OSError: it cannot be opened.
    """
    with naming(path):
        return recognize(read(path), Selection(prefer_ema, key, prefix, rename), path)


def recognize(
    contents: Contents, selection: Selection = ANY, path: str | os.PathLike | None = None
) -> Recognized:
    """As `infer_architecture`, from the contents of a file. Errors do not name the file.

    Args:
      contents: of the file.
      selection: which weights to read.
      path: of the file, whose name may be that of a published checkpoint.

    Raises:
      ValueError: an unsupported network.
    """
    found = find_weights(contents, selection)
    weights, naming = found.by_official_names()
    if found.composite is None:
        model, assumed = infer_backbone(found, weights), found.family.ASSUMED
    else:
        model, assumed = infer_composite(found, contents, path)
        weights = found.with_heads()
    return Recognized(
        model=model,
        name=registry.name_of(model),
        naming=naming,
        structure=structure_of(weights, model),
        place=found.place,
        ignored=found.ignored,
        faults=tuple(faults(weights, model)),
        assumed=assumed,
        is_ema=found.is_ema,
        has_ema=found.has_ema,
    )


def network_class(contents: Contents, selection: Selection = ANY) -> type[Network]:
    """The class of the network in the contents of a file.

    Raises:
      ValueError: an unsupported network.
    """
    found = find_weights(contents, selection)
    return (found.composite or found.family).NETWORK


def infer_backbone(found: Weights, weights: Mapping[str, Any]) -> Backbone:
    """The simple network of weights, even if its classifier is not one of the family.

    Args:
      found: the weights.
      weights: their tensors by official names.

    Raises:
      ValueError: an unsupported network.
    """
    try:
        return found.family.infer_model(weights)
    except ValueError:
        without = without_classifier(weights)
        if without.keys() == weights.keys():
            raise
        return found.family.infer_model(without)  # the classifier is among the faults


def infer_composite(
    found: Weights,
    contents: Contents,
    path: str | os.PathLike | None = None,
    like: str | None = None,
) -> tuple[CompositeNetwork, str]:
    """The composite network of weights, and what is assumed of it, in words.

    Args:
      found: the weights, with heads.
      contents: of the file.
      path: of the file, whose name may be that of a published checkpoint.
      like: as in `load_torch`.

    Raises:
      ValueError: an unsupported network.
    """
    composite = found.composite
    assert composite is not None
    backbone, heads = split(found.with_heads())
    model = found.family.infer_model(backbone)
    settings = find_settings(contents, path, composite, heads, model, like)
    model = composite.infer_model(heads, model, settings)
    return model, composite.assumed(model, settings)
