"""Writes networks to files for the official PyTorch code."""

import os
from collections.abc import Mapping
from typing import Any

from replk_jax.io.safetensors import write_safetensors
from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.torch_import.convert import expect_published, to_state_dict
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.writer import write_torch

TORCH_ENDINGS = (".pth", ".pt", ".bin")  # of the files of torch.save


def check_published(model: Network, *, merged: bool) -> None:
    """Checks that `save_torch` can save a network.

    Args:
      model, merged: as in `save_torch`.

    Raises:
      ValueError: a network or structure that the official code lacks.
    """
    expect_published(model, merged)


def save_torch(
    variables: Mapping[str, Any],
    model: Network,
    path: str | os.PathLike,
    *,
    merged: bool = False,
    naming: str = "official",
) -> None:
    """Writes a state dict for the official code (torchvision for MobileNet V2 and ResNet).

    That of a segmenter is for mmsegmentation, with the backbone in the names of mmpretrain. It does
    not contain `align_corners`, pooling scales and dilation, which mmsegmentation takes from its
    configuration. That of a detector is likewise for mmdetection.

    That code loads it strictly, into a network of the same sizes if it can build one: torchvision
    has only 3 x 3 kernels, and one width of each ResNet.

    Args:
      variables: of `model`.
      model: with `deploy=False`; a RepVGG may be merged, like the official one.
      path: .pth, .pt or .bin for `torch.load`, or .safetensors. An existing file is replaced once
        the new one is complete.
      merged: as in `to_state_dict`: whether to merge like RepLKNet's `structural_reparam()` or
        RepVGG's `switch_to_deploy()`.
      naming: "official", or "timm" for timm's names of a RepVGG, MobileNet V2 or ResNet.

    Raises:
      ValueError: variables of another model, a network or structure that the official code or
        timm lacks, another naming, or an ending of no format.
    """
    state_dict = to_state_dict(variables, model, merged=merged)
    if naming == "timm":
        if not isinstance(model, Backbone):
            raise ValueError(f'timm has no {type(model).__name__}: save it with naming="official".')
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
