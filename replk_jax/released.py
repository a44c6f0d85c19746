"""The checkpoints that the authors of RepLKNet released, and how each is evaluated.

The files are those linked from the official code's README (DingXiaoH/RepLKNet-pytorch), and
mmpretrain's conversions of them, whose model index has the accuracies to two decimals.
"""

import dataclasses
import os
import re
from pathlib import PurePath

import flax.linen as nn

from replk_jax.models.registry import name_of
from replk_jax.preprocessing import Preprocessing

_AT_224 = Preprocessing(224, crop_fraction=0.875)
_AT_384 = Preprocessing(384, crop_fraction=None)
# The authors crop below 384 and warp from there on.
_XL_AT_320 = Preprocessing(320, crop_fraction=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
      file_names: without ending: the authors', then those of mmpretrain's conversion, without
        date and hash.
      model: its name for `create_model`.
      pretraining: the images that it was first trained on.
      num_classes: of its classifier; None where it is not published.
      preprocessing: of the images that it is evaluated on.
      top1, top5: published accuracy on the validation images of ImageNet-1K, in per cent; None
        for networks that do not classify these, and were published without an accuracy.
    """

    file_names: tuple[str, ...]
    model: str
    pretraining: str
    num_classes: int | None
    preprocessing: Preprocessing
    top1: float | None = None
    top5: float | None = None


# Of those that share architecture and classes, the first is what an unnamed file is taken for.
RELEASED: tuple[Released, ...] = (
    Released(
        ("RepLKNet-31B_ImageNet-1K_224", "replknet-31B_3rdparty_in1k"),
        "replknet_31b", "ImageNet-1K", 1000, _AT_224, 83.48, 96.57,
    ),
    Released(
        ("RepLKNet-31B_ImageNet-1K_384", "replknet-31B_3rdparty_in1k-384px"),
        "replknet_31b", "ImageNet-1K", 1000, _AT_384, 84.84, 97.34,
    ),
    Released(
        ("RepLKNet-31B_ImageNet-22K-to-1K_224", "replknet-31B_in21k-pre_3rdparty_in1k"),
        "replknet_31b", "ImageNet-22K", 1000, _AT_224, 85.20, 97.56,
    ),
    Released(
        ("RepLKNet-31B_ImageNet-22K-to-1K_384", "replknet-31B_in21k-pre_3rdparty_in1k-384px"),
        "replknet_31b", "ImageNet-22K", 1000, _AT_384, 85.99, 97.75,
    ),
    Released(
        ("RepLKNet-31B_ImageNet-22K",),
        "replknet_31b", "ImageNet-22K", 21841, _AT_224,
    ),
    Released(
        ("RepLKNet-31L_ImageNet-22K-to-1K_384", "replknet-31L_in21k-pre_3rdparty_in1k-384px"),
        "replknet_31l", "ImageNet-22K", 1000, _AT_384, 86.63, 98.00,
    ),
    Released(
        ("RepLKNet-31L_ImageNet-22K",),
        "replknet_31l", "ImageNet-22K", 21841, _AT_224,
    ),
    # The paper has 87.8 for this one. mmpretrain's configuration, where 87.57 is from, divides by
    # 122.5 in place of 127.5.
    Released(
        ("RepLKNet-XL_MegData73M_ImageNet1K", "replknet-XL_meg73m-pre_3rdparty_in1k-320px"),
        "replknet_xl", "MegData-73M", 1000, _XL_AT_320, 87.57, 98.39,
    ),
    # Mean and standard deviation are published, the image size is not.
    Released(
        ("RepLKNet-XL_MegData73M_pretrain",),
        "replknet_xl", "MegData-73M", None, _XL_AT_320,
    ),
)  # fmt: skip


def find(path: str | os.PathLike) -> Released | None:
    """The released checkpoint that a file is by its name, whatever folder it lies in.

    The ending does not matter, nor do a date and a hash after the name, as mmpretrain and
    PyTorch Hub put them, nor the number that a browser adds to a second download.
    """
    name = re.sub(r"\.(pth|pt|bin|safetensors)$", "", PurePath(path).name.lower())
    name = re.sub(r" ?\(\d+\)$", "", name)
    name = re.sub(r"[-_](\d{8}-)?[0-9a-f]{8}$", "", name)
    for released in RELEASED:
        if name in map(str.lower, released.file_names):
            return released
    return None


def recognize(path: str | os.PathLike, model: nn.Module) -> Released | None:
    """The released checkpoint that a network is: by its file's name, architecture and classes."""
    named = find(path)
    if named is None or named.model != name_of(model.architecture):
        return None
    classes = {named.num_classes, model.num_classes}
    return named if None in classes or len(classes) == 1 else None


def usual_preprocessing(model: nn.Module) -> Preprocessing | None:
    """How images are prepared for networks like this one, which for this one is a guess.

    As for the first in `RELEASED` of this architecture, and with as many classes if there is
    one: a name tells 224 x 224 from 384 x 384 and weights do not. Else, for colour images, as
    for 31B at 224 x 224.

    Returns:
      The preprocessing, or None for a network of other than colour images.
    """
    architecture = name_of(model.architecture)
    alike = [released for released in RELEASED if released.model == architecture]
    alike.sort(key=lambda released: released.num_classes != model.num_classes)
    if alike:
        return alike[0].preprocessing
    return _AT_224 if model.architecture.in_channels == 3 else None
