"""Identifies the network of a PyTorch file by the names and shapes of its tensors."""

import dataclasses
import os
from collections.abc import Callable

from replk_jax.io.errors import naming
from replk_jax.io.text import brief
from replk_jax.models import registry
from replk_jax.models.backbone import Backbone
from replk_jax.models.description import architecture_in_words
from replk_jax.torch_import.convert import faults
from replk_jax.torch_import.entries import ANY, Selection
from replk_jax.torch_import.names import without_classifier
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.torch_files import Contents
from replk_jax.torch_import.weights import find_weights


@dataclasses.dataclass(frozen=True)
class Recognized:
    """The network in a PyTorch file, identified by the names and shapes of its tensors.

    Attributes:
      model: the network; `deploy=True` if the file is merged.
      name: the registered name, or None.
      naming: "official", "torchvision", "mmpretrain" or "timm".
      structure: the degree of re-parameterization.
      place: location of the weights in the file, in words.
      ignored: names of tensors of other networks in the same state dict.
      faults: tensors that are missing, unexpected or of another shape, which `load_torch` rejects.
      assumed: what names and shapes do not determine and the importer assumes, in words.
      is_ema: whether the weights are an exponential moving average (EMA).
      has_ema: whether the file has an EMA of any weights.
    """

    model: Backbone
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
            f"  assumed, since a file does not record it: {self.assumed}",
        ]
        if self.ignored:
            count, names = len(self.ignored), brief(self.ignored)
            lines.append(f"  left out: {count} tensors beside it: {names}")
        return "\n".join(lines)


def infer_architecture(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Recognized:
    """Identifies the network of a file by the names and shapes of its tensors.

    It supports RepLKNet, RepVGG, MobileNet V2 and ResNet of any widths, depths and kernel sizes.
    Properties that shapes do not determine have defaults: no stochastic depth, the published
    strides and shortcuts, and a backbone that returns all its stages.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision, mmpretrain or timm naming.
      prefer_ema, key, prefix, rename: as in `load_torch`.

    Raises:
      ValueError: a file that cannot be read, or of an unsupported network.
      OSError: it cannot be opened.
    """
    with naming(path):
        return recognize(read(path), Selection(prefer_ema, key, prefix, rename))


def recognize(contents: Contents, selection: Selection = ANY) -> Recognized:
    """As `infer_architecture`, from the contents of a file. Errors do not name the file.

    Raises:
      ValueError: an unsupported network.
    """
    found = find_weights(contents, selection)
    family = found.family
    weights, naming = found.by_official_names()
    try:
        model = family.infer_model(weights)
    except ValueError:
        without = without_classifier(weights)
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
