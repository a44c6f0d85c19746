"""Writes networks as files for the official PyTorch code."""

import os
from collections.abc import Mapping
from typing import Any

from replk_jax.io.safetensors import write_safetensors
from replk_jax.models.backbone import Backbone
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.writer import write_torch

TORCH_ENDINGS = (".pth", ".pt", ".bin")  # of the files of torch.save


def check_published(model: Backbone, *, merged: bool) -> None:
    """Checks that `save_torch` can save a network, before there is anything to save.

    Args:
      model, merged: as in `save_torch`.

    Raises:
      ValueError: a network or structure that the official code does not have.
    """
    family_of(model).expect_published(model, merged)


def save_torch(
    variables: Mapping[str, Any],
    model: Backbone,
    path: str | os.PathLike,
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
