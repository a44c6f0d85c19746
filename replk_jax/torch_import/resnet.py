"""ResNet's weights in PyTorch: torchvision's names, and inference from shapes."""

import re
from collections.abc import Mapping
from typing import Any

from replk_jax.models.resnet import Bottleneck, ResNet, ResNetArchitecture
from replk_jax.torch_import import names
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.structures import Structure, StructureNames
from replk_jax.torch_import.unrecorded import expect_recorded

NETWORK = ResNet
KEYS = re.compile(r"layer\d+\.\d+\.conv\d\.(?:weight|parametrizations\.)")
CLASSIFIER = "fc"
STRUCTURES = StructureNames(fused_bias="conv1.bias", merged_kernel=None)
ASSUMED = "an output stride of 32, the stride of a block in its 3 x 3 convolution, no anti-aliasing"
ORDER = (
    "conv1 bn1 conv2 bn2 conv3 bn3 downsample layer fc "
    "weight bias running_mean running_var num_batches_tracked"
)

_FROM_TREE = (
    (r"\b(conv\d)\.conv\.", r"\1."),
    (r"\bconv(\d)\.bn\.", r"bn\1."),
    (r"\bdownsample\.conv\.", "downsample.0."),
    (r"\bdownsample\.bn\.", "downsample.1."),
)


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """See `families.Family`. Official names are torchvision's; mmpretrain has `head.fc`."""
    renamed = names.renamed(weights, lambda key: re.sub(r"^head\.fc\.", "fc.", key))
    return renamed, "torchvision" if renamed.keys() == weights.keys() else "mmpretrain"


def timm_names(state_dict: Mapping[str, Any], architecture: ResNetArchitecture) -> dict[str, Any]:
    """See `families.Family`. timm's names are torchvision's."""
    return dict(state_dict)


def mm_names(state_dict: Mapping[str, Any], architecture: ResNetArchitecture) -> dict[str, Any]:
    """See `families.Family`. mmpretrain's names of a backbone are torchvision's."""
    return dict(state_dict)


def official_key(key: str, architecture: ResNetArchitecture) -> str:
    """See `families.Family`."""
    return names.replace_all(key, _FROM_TREE)


def infer_model(weights: Mapping[str, Any]) -> ResNet:
    """See `families.Family`.

    Shapes do not determine strides. torchvision's are assumed: in the 3 x 3 convolution of a
    bottleneck block, without dilation. A network without a classifier is inferred as a feature
    extractor; `model.clone(out_indices=...)` is a backbone with the same variables.
    """
    shapes = Shapes(weights, "ResNet")
    layers = shapes.layers(r"layer(\d+)\.(\d+)\.")
    shapes.expect_believable(sum(layers))
    stages = [f"layer{s + 1}" for s in range(len(layers))]
    for stage in stages:
        _expect_plain_block(shapes, stage)
    return ResNet(
        architecture=ResNetArchitecture(
            layers=layers,
            channels=tuple(shapes.kernel(f"{stage}.0.conv1.weight")[0] for stage in stages),
            in_channels=shapes.kernel("conv1.weight")[1],
            block="bottleneck" if "layer1.0.conv3.weight" in shapes else "basic",
        ),
        num_classes=shapes.classes("fc"),
        deploy=STRUCTURES.structure_of(weights) is not Structure.TRAINING,
    )


def _expect_plain_block(shapes: Shapes, stage: str) -> None:
    """Rejects ResNeXt and Wide ResNet, whose blocks have the same names.

    Raises:
      ValueError: grouped 3 x 3 convolutions, or a bottleneck block with another ratio of widths.
    """
    block = f"{stage}.0"
    width, per_group, _, _ = shapes.kernel(f"{block}.conv2.weight")
    is_bottleneck = f"{block}.conv3.weight" in shapes
    features = shapes.kernel(f"{block}.conv3.weight")[0] if is_bottleneck else width
    inputs = shapes.kernel(f"{block}.conv1.weight")[0]
    if inputs % per_group == 0 and per_group < inputs:
        kind, reason = "ResNeXt", f"{block}.conv2 has {inputs // per_group} groups"
    elif is_bottleneck and features != Bottleneck.expansion * width:
        kind, reason = "Wide ResNet", f"{block} has {width} channels inside and returns {features}"
    else:
        return
    raise ValueError(
        f"it is a {kind}, which is not known here: {reason}. A ResNet's blocks have no groups, and "
        f"a bottleneck block returns {Bottleneck.expansion} times the channels inside."
    )


def expect_published(model: ResNet, merged: bool) -> None:
    """See `families.Family`."""
    if merged or model.deploy:
        raise ValueError(
            "torchvision has no merged ResNet: save the training-time variables (deploy=False, "
            "merged=False)."
        )
    expect_recorded(model, {"stride_in_1x1": False})
