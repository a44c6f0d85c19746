"""RepLKNet's weights in PyTorch: the names others give them, and what their shapes tell."""

import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from replk_jax.models import RepLKNet, RepLKNetArchitecture, create_model, registry
from replk_jax.models.description import MOST_LAYERS
from replk_jax.torch_import.structures import Structure, structure_of

_LARGEST_DENOMINATOR = 4096  # of a ratio of widths

_STAGE_NORM = re.compile(r"stages\.(\d+)\.norm\.(.+)")


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Renames the weights of a network to the names of the official code.

    mmpretrain keeps the final norm in the last stage, and the classifier in `head.fc`. A
    backbone with a norm for each stage, which the official code has too, keeps them.

    Args:
      weights: of one network, by names without a prefix.

    Returns:
      The weights by official names, and whose names they had: "official" or "mmpretrain".

    Raises:
      ValueError: two tensors that come to have the same name.
    """
    stages = {int(m[1]) for m in map(_STAGE_NORM.fullmatch, weights) if m}
    last = _count(weights, "stages")
    final_norm_in_stage = stages == {last - 1} and last > 1 and "norm.weight" not in weights
    renamed = {}
    for key, value in weights.items():
        name = re.sub(r"^head\.fc\.", "head.", key)
        if final_norm_in_stage and (norm := _STAGE_NORM.fullmatch(name)):
            name = f"norm.{norm[2]}"
        if name in renamed or (name != key and name in weights):
            raise ValueError(f"two tensors stand for the same one, {name}")
        renamed[name] = value
    return renamed, "official" if renamed.keys() == weights.keys() else "mmpretrain"


def infer_model(weights: Mapping[str, Any]) -> RepLKNet:
    """The network that weights in official naming are for, told from keys and shapes alone.

    What they do not tell gets a default: no stochastic depth; a backbone, which has neither
    final norm nor classifier, emits all stages; the small kernels that a merged network had
    are those of the registered model of the same shape, else none.

    Args:
      weights: by official names; of each only the `shape` is looked at.

    Returns:
      The model, with `deploy=True` for weights that are merged.

    Raises:
      ValueError: weights that are not a RepLKNet's.
    """
    stages = range(_count(weights, "stages"))
    if not stages or "stem.0.conv.weight" not in weights:
        raise ValueError("these are not the weights of a RepLKNet: no stem.0.conv or no stages.0")

    def shape(key: str, dimensions: int = 4) -> tuple[int, ...]:
        found = weights[key].shape if key in weights else ()
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"in a RepLKNet {key} would be a kernel of {dimensions} dimensions")
        return found

    blocks = [f"stages.{s}.blocks" for s in stages]
    structure = structure_of(weights)
    large = "lkb_origin.conv" if structure is Structure.TRAINING else "lkb_reparam"
    small = "stages.0.blocks.0.large_kernel.small_conv.conv.weight"
    channels = [shape(f"{block}.0.pw2.conv.weight")[0] for block in blocks]
    large_kernels = [shape(f"{block}.0.large_kernel.{large}.weight") for block in blocks]
    hidden = [shape(f"{block}.1.pw1.conv.weight")[0] for block in blocks]
    layers = tuple(-(-_count(weights, block) // 2) for block in blocks)
    if sum(layers) > MOST_LAYERS:
        raise ValueError(f"a RepLKNet of {sum(layers)} layers is not believed")
    architecture = RepLKNetArchitecture(
        kernel_sizes=tuple(kernel[-1] for kernel in large_kernels),
        layers=layers,
        channels=tuple(channels),
        small_kernel=shape(small)[-1] if small in weights else None,
        dw_ratio=_ratio([kernel[0] for kernel in large_kernels], channels),
        ffn_ratio=_ratio(hidden, channels),
        in_channels=shape("stem.0.conv.weight")[1],
    )
    if structure is not Structure.TRAINING:
        architecture = _registered(architecture)
    has_head = any(key.startswith("head.") for key in weights)
    is_backbone = not has_head and "norm.weight" not in weights
    return create_model(
        architecture,
        num_classes=shape("head.weight", 2)[0] if has_head else None,
        out_indices=tuple(stages) if is_backbone else None,
        norm_intermediate_features=is_backbone and "stages.0.norm.weight" in weights,
        deploy=structure is not Structure.TRAINING,
    )


def _count(weights: Mapping[str, Any], prefix: str) -> int:
    """How many numbered parts there are: `prefix.0`, `prefix.1`, ..."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, weights) if match})


def _ratio(widths: list[int], channels: list[int]) -> float:
    """The r of least denominator with int(c r) = w for every stage."""
    lowest = max(Fraction(w, c) for w, c in zip(widths, channels, strict=True))
    for denominator in range(1, _LARGEST_DENOMINATOR + 1):
        ratio = math.ceil(lowest * denominator) / denominator
        if all(int(c * ratio) == w for w, c in zip(widths, channels, strict=True)):
            return ratio
    raise ValueError(f"no ratio makes widths of {widths} from channels of {channels}")


def _registered(architecture: RepLKNetArchitecture) -> RepLKNetArchitecture:
    """With the small kernels of the registered architecture that is the same but for them."""
    for known in registry.ARCHITECTURES.values():
        if dataclasses.replace(known, small_kernel=None) == architecture:
            return known
    return architecture
