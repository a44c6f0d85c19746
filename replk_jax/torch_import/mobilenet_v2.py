"""MobileNet V2's weights in PyTorch: the names of torchvision, mmpretrain and timm, and shapes.

torchvision numbers all blocks consecutively, `features.1` to `features.17`, between the stem and
the last convolution. mmpretrain and this package number them by stage, `layer3.0`. In torchvision's
blocks, a convolution with an activation is a pair of convolution and norm, `conv.0.0` and
`conv.0.1`; the projection, without an activation, is next to its norm, `conv.2` and `conv.3`. timm
numbers by stage too, and names the convolutions of a block `conv_pw`, `conv_dw` and `conv_pwl`,
with the norms `bn1`, `bn2` and `bn3`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from replk_jax.models.mobilenet_v2 import MobileNetV2, MobileNetV2Architecture
from replk_jax.torch_import import names
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.structures import Structure, StructureNames
from replk_jax.torch_import.unrecorded import expect_recorded

NETWORK = MobileNetV2
KEYS = re.compile(r"features\.\d+\.conv\.\d|layer\d+\.\d+\.conv\.\d|blocks\.\d+\.\d+\.conv_pwl\.")
CLASSIFIER = "classifier.1"
STRUCTURES = StructureNames(fused_bias="features.0.0.bias", merged_kernel="lkb_reparam")
ASSUMED = "the strides and shortcuts of the paper, and ReLU6"
ORDER = "features classifier conv weight bias running_mean running_var num_batches_tracked"

_NAMINGS = {
    "torchvision": r"features\.",
    "mmpretrain": r"layer\d+\.",
    "timm": r"conv_stem\.|blocks\.\d+\.",
}
_PAIR = ("conv", "bn")
_OF_A_PAIR = {"conv": 0, "bn": 1}
_PART_OF_A_BLOCK = re.compile(
    r"layer(?P<stage>\d{1,4})\.(?P<block>\d{1,4})\.conv\.(?P<conv>\d)\."
    r"(?P<branch>(\w+\.)?)(?P<part>conv|bn)\.(?P<leaf>\w+)"
)
# timm's names of the convolutions of a block, with an expansion (True) and without.
_TIMM_CONVS = {True: ("conv_pw", "conv_dw", "conv_pwl"), False: ("conv_dw", "conv_pw")}
_TIMM_PART_OF_A_BLOCK = re.compile(
    r"blocks\.(?P<stage>\d{1,4})\.(?P<block>\d{1,4})\.(?P<part>\w+)\.(?P<leaf>\w+)"
)
_STANDARD = MobileNetV2Architecture()


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """See `families.Family`. Official names are torchvision's."""
    naming = names.naming_of(weights, _NAMINGS)
    match naming:
        case "mmpretrain":
            layers = Shapes(weights, "MobileNetV2").layers(r"layer(\d+)\.(\d+)\.")
            expands = [f"layer{s + 1}.0.conv.2.conv.weight" in weights for s in range(len(layers))]
            rename = partial(_torchvision_key, layers=layers, expands=expands)
        case "timm":
            layers = Shapes(weights, "MobileNetV2").layers(r"blocks\.(\d+)\.(\d+)\.")
            expands = [f"blocks.{s}.0.conv_pwl.weight" in weights for s in range(len(layers))]
            rename = partial(_from_timm, layers=layers, expands=expands)
        case _:
            return dict(weights), naming
    return names.renamed(weights, rename), naming


def timm_names(
    state_dict: Mapping[str, Any], architecture: MobileNetV2Architecture
) -> dict[str, Any]:
    """See `families.Family`."""
    rename = partial(_to_timm, layers=architecture.layers, expands=_expands(architecture))
    return names.renamed(state_dict, rename)


def mm_names(
    state_dict: Mapping[str, Any], architecture: MobileNetV2Architecture
) -> dict[str, Any]:
    """See `families.Family`."""
    rename = partial(_to_mm, layers=architecture.layers, expands=_expands(architecture))
    return names.renamed(state_dict, rename)


def official_key(key: str, architecture: MobileNetV2Architecture) -> str:
    """See `families.Family`."""
    return _torchvision_key(key, architecture.layers, _expands(architecture))


def infer_model(weights: Mapping[str, Any]) -> MobileNetV2:
    """See `families.Family`.

    Shapes do not determine strides, dilation and shortcuts: the paper's are assumed. The paper's
    number of blocks per stage is assumed for 17 blocks with compatible widths. Otherwise a stage
    begins where the width changes, and there must be seven stages, so that their strides are
    known. A network without the last convolution is a backbone that returns all stages.
    """
    shapes = Shapes(weights, "MobileNetV2")
    count = len(shapes.layers(r"features\.(\d+)\.conv\.(\d+)"))
    shapes.expect_believable(count)
    blocks = [_block(shapes, number) for number in range(1, count + 1)]
    layers = _layers_per_stage([block.channels for block in blocks])
    if len(layers) != len(_STANDARD.strides):
        raise ValueError(
            f"it is a MobileNetV2 of {len(layers)} stages, whose strides are not known: give the "
            "model."
        )
    firsts = [blocks[sum(layers[:s])] for s in range(len(layers))]
    last_conv = f"features.{count + 1}.0.weight"
    stem = shapes.kernel("features.0.0.weight")
    is_backbone = last_conv not in shapes
    return MobileNetV2(
        architecture=MobileNetV2Architecture(
            layers=layers,
            kernel_sizes=tuple(block.kernel_size for block in firsts),
            channels=tuple(block.channels for block in firsts),
            expansions=tuple(block.expansion for block in firsts),
            stem_channels=stem[0],
            last_channels=_STANDARD.last_channels if is_backbone else shapes.kernel(last_conv)[0],
            in_channels=stem[1],
        ),
        num_classes=shapes.classes("classifier.1"),
        deploy=STRUCTURES.structure_of(weights) is not Structure.TRAINING,
        out_indices=tuple(range(len(layers))) if is_backbone else None,
    )


def expect_published(model: MobileNetV2, merged: bool) -> None:
    """See `families.Family`."""
    if merged or model.deploy:
        raise ValueError(
            "torchvision has no merged MobileNetV2: save the training-time variables "
            "(deploy=False, merged=False)."
        )
    architecture = model.architecture
    if architecture.small_kernel is not None or not architecture.shortcuts:
        raise ValueError(
            "torchvision's MobileNetV2 has shortcuts, and no small kernels beside larger ones: "
            "save a network with small_kernel or shortcuts=False in a format of this package."
        )
    assumed: dict[str, Any] = {"dilation": 1}
    # Reading a file with another number of stages requires the model, which has the strides.
    if len(architecture.strides) == len(_STANDARD.strides):
        assumed["strides"] = _STANDARD.strides
    expect_recorded(model, assumed)


def _expands(architecture: MobileNetV2Architecture) -> list[bool]:
    """Whether the blocks begin with an expansion, one entry per stage."""
    return [expansion != 1 for expansion in architecture.expansions]


def _from_timm(key: str, layers: Sequence[int], expands: Sequence[bool]) -> str:
    """Converts a name from timm to torchvision; other arguments as in `_torchvision_key`."""
    match key.split("."):
        case ["conv_stem", leaf]:
            return f"features.0.0.{leaf}"
        case ["bn1", leaf]:
            return f"features.0.1.{leaf}"
        case ["conv_head", leaf]:
            return f"features.{sum(layers) + 1}.0.{leaf}"
        case ["bn2", leaf]:
            return f"features.{sum(layers) + 1}.1.{leaf}"
        case ["classifier", leaf]:
            return f"classifier.1.{leaf}"
    part = _TIMM_PART_OF_A_BLOCK.fullmatch(key)
    if not part or int(part["stage"]) >= len(layers):
        return key
    stage, block = int(part["stage"]), int(part["block"])
    convs = _TIMM_CONVS[expands[stage]]
    norms = tuple(f"bn{i + 1}" for i in range(len(convs)))
    for kind, parts in (("conv", convs), ("bn", norms)):
        if part["part"] in parts:
            place = f"{parts.index(part['part'])}.{kind}"
            rule = f"layer{stage + 1}.{block}.conv.{place}.{part['leaf']}"
            return _torchvision_key(rule, layers, expands)
    return key


def _to_timm(key: str, layers: Sequence[int], expands: Sequence[bool]) -> str:
    """Converts a name from torchvision to timm; other arguments as in `_torchvision_key`."""
    match key.split("."):
        case ["classifier", "1", leaf]:
            return f"classifier.{leaf}"
        case ["features", "0", position, leaf]:
            return f"{('conv_stem', 'bn1')[int(position)]}.{leaf}"
        case ["features", _, position, leaf]:
            return f"{('conv_head', 'bn2')[int(position)]}.{leaf}"
        case ["features", number, "conv", *place, leaf]:
            stage, block, conv, position = _place_in_stage(number, place, layers, expands)
            part = f"bn{conv + 1}" if position else _TIMM_CONVS[expands[stage]][conv]
            return f"blocks.{stage}.{block}.{part}.{leaf}"
    return key


def _to_mm(key: str, layers: Sequence[int], expands: Sequence[bool]) -> str:
    """Converts a name from torchvision to mmpretrain; other arguments as in `_torchvision_key`."""
    match key.split("."):
        case ["classifier", "1", leaf]:
            return f"head.fc.{leaf}"
        case ["features", "0", position, leaf]:
            return f"conv1.{_PAIR[int(position)]}.{leaf}"
        case ["features", _, position, leaf]:
            return f"conv2.{_PAIR[int(position)]}.{leaf}"
        case ["features", number, "conv", *place, leaf]:
            stage, block, conv, position = _place_in_stage(number, place, layers, expands)
            return f"layer{stage + 1}.{block}.conv.{conv}.{_PAIR[position]}.{leaf}"
    return key


def _place_in_stage(
    number: str, place: Sequence[str], layers: Sequence[int], expands: Sequence[bool]
) -> tuple[int, int, int, int]:
    """The stage, the block, the convolution and the place in `_PAIR` of a torchvision name.

    Args:
      number: of the block, as in "features.4".
      place: the parts after "conv", without the last one.
      layers, expands: as in `_torchvision_key`.
    """
    stage, block = 0, int(number) - 1
    while block >= layers[stage]:
        stage, block = stage + 1, block - layers[stage]
    if len(place) == 2:
        conv, position = map(int, place)
        return stage, block, conv, position
    # The projection is not in a module of its own.
    projection = len(_TIMM_CONVS[expands[stage]]) - 1
    return stage, block, projection, int(place[0]) - projection


def _torchvision_key(key: str, layers: Sequence[int], expands: Sequence[bool]) -> str:
    """Converts a name from mmpretrain, or by rule, to torchvision.

    Args:
      key: any name; unknown ones are returned unchanged.
      layers: number of blocks, one per stage.
      expands: whether a stage's blocks begin with an expansion.
    """
    match key.split("."):
        case ["classifier", leaf] | ["head", "fc", leaf]:
            return f"classifier.1.{leaf}"
        case ["conv1", "conv" | "bn" as part, leaf]:
            return f"features.0.{_OF_A_PAIR[part]}.{leaf}"
        case ["conv2", "conv" | "bn" as part, leaf]:
            return f"features.{sum(layers) + 1}.{_OF_A_PAIR[part]}.{leaf}"
    part = _PART_OF_A_BLOCK.fullmatch(key)
    if not part or int(part["stage"]) not in range(1, len(layers) + 1):
        return key
    stage, block, conv = (int(part[number]) for number in ("stage", "block", "conv"))
    features = f"features.{sum(layers[: stage - 1]) + block + 1}.conv"
    place = _OF_A_PAIR[part["part"]]
    if conv == (2 if expands[stage - 1] else 1):
        return f"{features}.{conv + place}.{part['leaf']}"
    return f"{features}.{conv}.{part['branch']}{place}.{part['leaf']}"


class _Block(NamedTuple):
    """The sizes of a block, as in `MobileNetV2Architecture`."""

    kernel_size: int
    channels: int
    expansion: int


def _block(shapes: Shapes, number: int) -> _Block:
    conv = f"features.{number}.conv"
    expands = f"{conv}.1.0.weight" in shapes
    hidden, _, _, kernel_size = shapes.kernel(f"{conv}.{int(expands)}.0.weight")
    inputs = shapes.kernel(f"{conv}.0.0.weight")[1] if expands else hidden
    channels = shapes.kernel(f"{conv}.{2 if expands else 1}.weight")[0]
    return _Block(kernel_size, channels, expansion=hidden // inputs)


def _layers_per_stage(channels: Sequence[int]) -> tuple[int, ...]:
    """The number of blocks of each stage, from the width of each block."""
    if len(channels) == sum(_STANDARD.layers):
        ends = itertools.accumulate(_STANDARD.layers)
        stages = [channels[e - n : e] for n, e in zip(_STANDARD.layers, ends, strict=True)]
        if all(len(set(stage)) == 1 for stage in stages):
            return _STANDARD.layers
    return tuple(len(list(stage)) for _, stage in itertools.groupby(channels))
