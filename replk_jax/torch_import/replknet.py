"""RepLKNet's weights in PyTorch: names in other libraries, and inference from shapes."""

import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from replk_jax.models import RepLKNet, RepLKNetArchitecture, registry
from replk_jax.torch_import import names
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.structures import Structure, StructureNames
from replk_jax.torch_import.unrecorded import expect_recorded

NETWORK = RepLKNet
KEYS = re.compile(r"stages\.\d+\.blocks\.\d+\.(?:pw[12]|large_kernel|prelkb_bn|preffn_bn)\.")
CLASSIFIER = "head"
STRUCTURES = StructureNames(fused_bias="stem.0.conv.bias", merged_kernel="lkb_reparam")
ASSUMED = "an output stride of 32"
ORDER = (
    "stem stages transitions blocks norm head "
    "preffn_bn pw1 pw2 large_kernel lkb_origin small_conv lkb_reparam prelkb_bn "
    "conv bn weight bias running_mean running_var num_batches_tracked"
)

_LARGEST_DENOMINATOR = 4096  # of a ratio of widths

_BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\."
_STAGE_NORM = re.compile(r"stages\.(\d+)\.norm\.(.+)")


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """See `families.Family`.

    mmpretrain has the final norm in the last stage, and the classifier in `head.fc`. The norms of a
    backbone with one per stage, which the official code has too, are not renamed.
    """
    stages = {int(m[1]) for m in map(_STAGE_NORM.fullmatch, weights) if m}
    count = len(Shapes(weights, "RepLKNet").layers(_BLOCK))
    final_norm_in_stage = stages == {count - 1} and count > 1 and "norm.weight" not in weights

    def rename(key: str) -> str:
        if final_norm_in_stage and (norm := _STAGE_NORM.fullmatch(key)):
            return f"norm.{norm[2]}"
        return re.sub(r"^head\.fc\.", "head.", key)

    renamed = names.renamed(weights, rename)
    return renamed, "official" if renamed.keys() == weights.keys() else "mmpretrain"


def timm_names(state_dict: Mapping[str, Any], architecture: RepLKNetArchitecture) -> dict[str, Any]:
    """See `families.Family`."""
    raise ValueError('timm has no RepLKNet: save it with the official names (naming="official").')


def mm_names(state_dict: Mapping[str, Any], architecture: RepLKNetArchitecture) -> dict[str, Any]:
    """See `families.Family`. mmsegmentation's backbone is that of the official code."""
    return dict(state_dict)


def official_key(key: str, architecture: RepLKNetArchitecture) -> str:
    """See `families.Family`. The variables mirror the official code."""
    return key


def infer_model(weights: Mapping[str, Any]) -> RepLKNet:
    """See `families.Family`.

    Properties that shapes do not determine have defaults. There is no stochastic depth and no
    dilation. A network without final norm and classifier is a backbone, which returns the stages
    with a norm, or all stages if none has one. A merged network had the small kernels of the
    registered model with the same shapes, or else none.
    """
    shapes = Shapes(weights, "RepLKNet")
    layers = tuple(-(-blocks // 2) for blocks in shapes.layers(_BLOCK))
    if not layers or "stem.0.conv.weight" not in shapes:
        raise ValueError("these are not the weights of a RepLKNet: no stem.0.conv or no stages.0")
    shapes.expect_believable(sum(layers))
    blocks = [f"stages.{s}.blocks" for s in range(len(layers))]
    structure = STRUCTURES.structure_of(weights)
    large = "lkb_origin.conv" if structure.has_branches else "lkb_reparam"
    small = "stages.0.blocks.0.large_kernel.small_conv.conv.weight"
    channels = [shapes.kernel(f"{block}.0.pw2.conv.weight")[0] for block in blocks]
    large_kernels = [shapes.kernel(f"{block}.0.large_kernel.{large}.weight") for block in blocks]
    hidden = [shapes.kernel(f"{block}.1.pw1.conv.weight")[0] for block in blocks]
    architecture = RepLKNetArchitecture(
        kernel_sizes=tuple(kernel[-1] for kernel in large_kernels),
        layers=layers,
        channels=tuple(channels),
        small_kernel=shapes.kernel(small)[-1] if small in shapes else None,
        dw_ratio=_ratio([kernel[0] for kernel in large_kernels], channels),
        ffn_ratio=_ratio(hidden, channels),
        in_channels=shapes.kernel("stem.0.conv.weight")[1],
    )
    if not structure.has_branches:
        architecture = _registered(architecture)
    num_classes = shapes.classes("head")
    is_backbone = num_classes is None and "norm.weight" not in shapes
    every_stage = tuple(range(len(layers)))
    normed = tuple(s for s in every_stage if f"stages.{s}.norm.weight" in shapes)
    return RepLKNet(
        architecture=architecture,
        num_classes=num_classes,
        out_indices=normed or every_stage if is_backbone else None,
        norm_intermediate_features=bool(normed) if is_backbone else normed == every_stage,
        deploy=structure is not Structure.TRAINING,
    )


def expect_published(model: RepLKNet, merged: bool) -> None:
    """See `families.Family`."""
    expect_recorded(model, {})
    if model.deploy:
        raise ValueError(
            "The official code has no structure without batch norms in front of the blocks: save "
            "the training-time variables (deploy=False), with merged=True if need be."
        )
    if model.architecture.dilated_branches and not merged:
        raise ValueError(
            "The official code has no dilated branches beside its large kernels: save them merged "
            "(merged=True)."
        )


def _ratio(widths: list[int], channels: list[int]) -> float:
    """The ratio r with the smallest denominator such that int(c r) = w for every stage."""
    lowest = max(Fraction(w, c) for w, c in zip(widths, channels, strict=True))
    for denominator in range(1, _LARGEST_DENOMINATOR + 1):
        ratio = math.ceil(lowest * denominator) / denominator
        if all(int(c * ratio) == w for w, c in zip(widths, channels, strict=True)):
            return ratio
    raise ValueError(f"no ratio makes widths of {widths} from channels of {channels}")


def _registered(architecture: RepLKNetArchitecture) -> RepLKNetArchitecture:
    """The registered architecture that differs only in its small kernels, if there is one."""
    for known in registry.ARCHITECTURES.values():
        if not isinstance(known, RepLKNetArchitecture):
            continue
        if dataclasses.replace(known, small_kernel=None) == architecture:
            return known
    return architecture
