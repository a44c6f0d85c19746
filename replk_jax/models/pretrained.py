"""The checkpoints that were released of these networks, and how each is evaluated.

RepLKNet's and RepVGG's are those linked from the READMEs of the official code
(DingXiaoH/RepLKNet-pytorch, DingXiaoH/RepVGG), and mmpretrain's conversions of them, whose model
indices have the accuracies to two decimals; besides, RepVGG and MobileNet V2 as mmpretrain trained
them. MobileNet V2 and ResNet are torchvision's, with the accuracies that it states. mmpretrain's
ResNets are not listed: their images are resized by OpenCV, which no filter of Pillow equals.
"""

import dataclasses
import difflib
import itertools
import os
import re
from pathlib import PurePath
from typing import NamedTuple

from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.models.registry import ARCHITECTURES, name_of, resolve_name
from replk_jax.vision.preprocessing import Preprocessing

_AT_224 = Preprocessing(224, crop_fraction=0.875)
_AT_384 = Preprocessing(384, crop_fraction=None)
# The authors crop below 384 and warp from there on.
_XL_AT_320 = Preprocessing(320, crop_fraction=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A released checkpoint.

    Attributes:
      file_names: without ending: the authors', then those of mmpretrain's conversion, without
        date and hash; torchvision's with the hash, which is all that tells some apart.
      model: its name for `create_model`.
      pretraining: the images that it was first trained on.
      num_classes: of its classifier; None where it is not published.
      preprocessing: of the images that it is evaluated on.
      top1, top5: published accuracy on the validation images of ImageNet-1K, in per cent; None
        where none was published, such as for networks that do not classify these.
    """

    file_names: tuple[str, ...]
    model: str
    pretraining: str
    num_classes: int | None
    preprocessing: Preprocessing
    top1: float | None = None
    top5: float | None = None


def _bilinear(
    model: str,
    top1: float,
    top5: float | None,
    *file_names: str,
    resized: int = 256,
    size: int = 224,
) -> Pretrained:
    """Trained on ImageNet-1K, and tested with torchvision's default filter.

    Args:
      model, top1, top5, *file_names: as in `Pretrained`.
      resized: shorter side of the image in pixels, before the crop.
      size: of the crop.
    """
    preprocessing = Preprocessing(size, crop_fraction=size / resized, interpolation="bilinear")
    return Pretrained(file_names, model, "ImageNet-1K", 1000, preprocessing, top1, top5)


# Of those that share architecture and classes, the first is what an unnamed file is taken for.
PRETRAINED: tuple[Pretrained, ...] = (
    Pretrained(
        ("RepLKNet-31B_ImageNet-1K_224", "replknet-31B_3rdparty_in1k"),
        "replknet_31b", "ImageNet-1K", 1000, _AT_224, 83.48, 96.57,
    ),
    Pretrained(
        ("RepLKNet-31B_ImageNet-1K_384", "replknet-31B_3rdparty_in1k-384px"),
        "replknet_31b", "ImageNet-1K", 1000, _AT_384, 84.84, 97.34,
    ),
    Pretrained(
        ("RepLKNet-31B_ImageNet-22K-to-1K_224", "replknet-31B_in21k-pre_3rdparty_in1k"),
        "replknet_31b", "ImageNet-22K", 1000, _AT_224, 85.20, 97.56,
    ),
    Pretrained(
        ("RepLKNet-31B_ImageNet-22K-to-1K_384", "replknet-31B_in21k-pre_3rdparty_in1k-384px"),
        "replknet_31b", "ImageNet-22K", 1000, _AT_384, 85.99, 97.75,
    ),
    Pretrained(
        ("RepLKNet-31B_ImageNet-22K",),
        "replknet_31b", "ImageNet-22K", 21841, _AT_224,
    ),
    Pretrained(
        ("RepLKNet-31L_ImageNet-22K-to-1K_384", "replknet-31L_in21k-pre_3rdparty_in1k-384px"),
        "replknet_31l", "ImageNet-22K", 1000, _AT_384, 86.63, 98.00,
    ),
    Pretrained(
        ("RepLKNet-31L_ImageNet-22K",),
        "replknet_31l", "ImageNet-22K", 21841, _AT_224,
    ),
    # The paper has 87.8 for this one. mmpretrain's configuration, where 87.57 is from, divides by
    # 122.5 in place of 127.5.
    Pretrained(
        ("RepLKNet-XL_MegData73M_ImageNet1K", "replknet-XL_meg73m-pre_3rdparty_in1k-320px"),
        "replknet_xl", "MegData-73M", 1000, _XL_AT_320, 87.57, 98.39,
    ),
    # Mean and standard deviation are published, the image size is not.
    Pretrained(
        ("RepLKNet-XL_MegData73M_pretrain",),
        "replknet_xl", "MegData-73M", None, _XL_AT_320,
    ),
    _bilinear(
        "repvgg_a0", 72.41, 90.50,
        "RepVGG-A0-train", "repvgg-A0_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_a1", 74.47, 91.85,
        "RepVGG-A1-train", "repvgg-A1_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_a2", 76.48, 93.01,
        "RepVGG-A2-train", "repvgg-A2_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b0", 75.14, 92.42,
        "RepVGG-B0-train", "repvgg-B0_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b1", 78.37, 94.11,
        "RepVGG-B1-train", "repvgg-B1_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b1g2", 77.79, 93.88,
        "RepVGG-B1g2-train", "repvgg-B1g2_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b1g4", 77.58, 93.84,
        "RepVGG-B1g4-train", "repvgg-B1g4_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b2", 78.78, 94.42,
        "RepVGG-B2-train", "repvgg-B2_3rdparty_4xb64-coslr-120e_in1k",
    ),
    _bilinear(
        "repvgg_b2g4", 79.38, 94.68, "RepVGG-B2g4-200epochs-train",
        "repvgg-B2g4_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
    ),
    _bilinear(
        "repvgg_b3", 80.52, 95.26, "RepVGG-B3-200epochs-train",
        "repvgg-B3_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
    ),
    _bilinear(
        "repvgg_b3g4", 80.22, 95.10, "RepVGG-B3g4-200epochs-train",
        "repvgg-B3g4_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
    ),
    # 120 epochs, as the smaller ones; the accuracy is that of the paper.
    _bilinear("repvgg_b2g4", 78.50, None, "RepVGG-B2g4-train"),
    # Twice the same weights, which were trained at 224: the authors test them at 320.
    _bilinear("repvgg_d2se", 83.55, None, "RepVGG-D2se-200epochs-train", resized=320, size=320),
    _bilinear(
        "repvgg_d2se", 81.81, 95.94,
        "repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
    ),
    _bilinear("repvgg_a0", 72.37, 90.56, "repvgg-A0_8xb32_in1k"),
    _bilinear("repvgg_a1", 74.23, 91.80, "repvgg-A1_8xb32_in1k"),
    _bilinear("repvgg_a2", 76.49, 93.09, "repvgg-A2_8xb32_in1k"),
    _bilinear("repvgg_b0", 75.27, 92.21, "repvgg-B0_8xb32_in1k"),
    _bilinear("repvgg_b1", 78.19, 94.04, "repvgg-B1_8xb32_in1k"),
    _bilinear("repvgg_b1g2", 77.87, 93.99, "repvgg-B1g2_8xb32_in1k"),
    _bilinear("repvgg_b1g4", 77.81, 93.77, "repvgg-B1g4_8xb32_in1k"),
    _bilinear("repvgg_b2", 78.58, 94.23, "repvgg-B2_8xb32_in1k"),
    _bilinear("repvgg_b2g4", 79.44, 94.72, "repvgg-B2g4_8xb32_in1k"),
    _bilinear("repvgg_b3", 80.58, 95.33, "repvgg-B3_8xb32_in1k"),
    _bilinear("repvgg_b3g4", 80.26, 95.15, "repvgg-B3g4_8xb32_in1k"),
    _bilinear("mobilenet_v2", 71.878, 90.286, "mobilenet_v2-b0353104"),
    _bilinear("mobilenet_v2", 72.154, 90.822, "mobilenet_v2-7ebf99e0", resized=232),
    _bilinear("mobilenet_v2", 71.86, 90.42, "mobilenet_v2_batch256_imagenet"),
    _bilinear("resnet_18", 69.758, 89.078, "resnet18-f37072fd"),
    _bilinear("resnet_34", 73.314, 91.420, "resnet34-b627a593"),
    _bilinear("resnet_50", 76.130, 92.862, "resnet50-0676ba61"),
    _bilinear("resnet_50", 80.858, 95.434, "resnet50-11ad3fa6", resized=232),
    _bilinear("resnet_101", 77.374, 93.546, "resnet101-63fe2227"),
    _bilinear("resnet_101", 81.886, 95.780, "resnet101-cd907fc2", resized=232),
    _bilinear("resnet_152", 78.312, 94.046, "resnet152-394f9c45"),
    _bilinear("resnet_152", 82.284, 96.002, "resnet152-f82ba261", resized=232),
)  # fmt: skip


# Top-1 on ImageNet-1K at 224 x 224 of networks that were published without weights, in per cent:
# RepLKNet's paper, tables 5 (120 epochs), 2, 3 and 4, and 11 of its first arXiv version (MobileNet
# V2).
UNRELEASED: dict[str, float] = {
    "replknet_3": 82.11,
    "replknet_7": 82.73,
    "replknet_13": 83.02,
    "replknet_25": 83.00,
    "mobilenet_v2_no_shortcuts": 68.67,
    "mobilenet_v2_9": 72.67,
    "mobilenet_v2_9_reparam": 73.09,
    "mobilenet_v2_13": 72.53,
    "mobilenet_v2_13_no_shortcuts": 53.98,
    "mobilenet_v2_13_reparam": 73.24,
    "mobilenet_v2_last_7": 72.00,
    "mobilenet_v2_last_13": 71.97,
    "mobilenet_v2_dilated_4": 57.23,
    "mobilenet_v2_dilated_6": 51.21,
}


class Accuracy(NamedTuple):
    """Top-1 on ImageNet-1K in per cent, at which image size, and whether weights have it."""

    top1: float
    image_size: int
    released: bool


def published_accuracy(name: str) -> Accuracy | None:
    """The accuracy of a registered model: of the first of its released checkpoints, if it has any.

    None for a model that was published without an accuracy.

    Args:
      name: as of `create_model`.

    Raises:
      ValueError: an unknown name.
    """
    name = resolve_name(name)
    for entry in PRETRAINED:
        if entry.model == name and entry.top1 is not None:
            return Accuracy(entry.top1, entry.preprocessing.image_size, released=True)
    return Accuracy(UNRELEASED[name], 224, released=False) if name in UNRELEASED else None


def find(path: str | os.PathLike) -> Pretrained | None:
    """The released checkpoint that a file is by its name, whatever folder it lies in.

    The ending does not matter, nor do a date and a hash after the name, as mmpretrain and
    PyTorch Hub put them, nor the number that a browser adds to a second download.
    """
    name = re.sub(r"\.(pth|pt|bin|safetensors)$", "", PurePath(path).name.lower())
    name = re.sub(r" ?\(\d+\)$", "", name)
    without_hash = re.sub(r"[-_](\d{8}-)?[0-9a-f]{8}$", "", name)
    for entry in PRETRAINED:
        if {name, without_hash} & set(map(str.lower, entry.file_names)):
            return entry
    return None


def lookup(name: str) -> Pretrained:
    """The released checkpoint of a file name, or the only kind of checkpoint of a model.

    Args:
      name: of a file, as `find` knows it; or of a model, as `create_model` knows it.

    Raises:
      ValueError: neither; or a model without a released checkpoint, or with several whose images
        are prepared differently.
    """
    if found := find(name):
        return found
    try:
        model = resolve_name(name)
    except ValueError:
        raise ValueError(
            f"no released checkpoint or model is called {name!r}. {_hint(name)}"
        ) from None
    entries = [entry for entry in PRETRAINED if entry.model == model]
    if not entries:
        raise ValueError(
            f"no released checkpoint is of {model}: name a model or file whose images are prepared "
            "in the same way."
        )
    if len({entry.preprocessing for entry in entries}) > 1:
        files = ", ".join(entry.file_names[0] for entry in entries)
        raise ValueError(
            f"the released checkpoints of {model} do not share one preprocessing: name one of "
            f"{files}."
        )
    return entries[0]


def _hint(name: str) -> str:
    """The names closest to one that is unknown, or where to find them."""
    files = itertools.chain.from_iterable(entry.file_names for entry in PRETRAINED)
    by_lower_case = {known.lower(): known for known in (*ARCHITECTURES, *files)}
    close = difflib.get_close_matches(name.lower(), by_lower_case)
    if not close:
        return "python -m replk_jax models lists the models."
    return f"Did you mean {', '.join(map(by_lower_case.__getitem__, close))}?"


def recognize(path: str | os.PathLike, model: Network) -> Pretrained | None:
    """The released checkpoint that a network is: by its file's name, architecture and classes."""
    named = find(path)
    if named is None or named.model != name_of(model):
        return None
    classes = {named.num_classes, model.num_classes}
    return named if None in classes or len(classes) == 1 else None


def default_preprocessing(model: Network) -> Preprocessing | None:
    """How images are prepared for networks like this one, which for this one is a guess.

    As for the first in `PRETRAINED` of this architecture, and with as many classes if there is
    one: a name tells 224 x 224 from 384 x 384 and weights do not. Else, for colour images, as
    for the first of the family.

    Returns:
      The preprocessing, or None for a composite network or one of other than colour images.
    """
    if not isinstance(model, Backbone) or model.in_channels != 3:
        return None
    name, kind = name_of(model), type(model.architecture)
    family = [entry for entry in PRETRAINED if type(ARCHITECTURES[entry.model]) is kind]
    alike = [entry for entry in family if entry.model == name] or family[:1]
    return min(alike, key=lambda entry: entry.num_classes != model.num_classes).preprocessing
