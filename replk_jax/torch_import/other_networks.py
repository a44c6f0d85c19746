"""Well-known networks that are not supported, identified by the names of their tensors.

Without them the message for a file of another network would be about the closest network that is
known here, or list what is missing of it.
"""

import re
from collections.abc import Iterable

# Labels with patterns of names that the network has and none that is supported here. The first
# match decides. Names differ between libraries; "timm" and the like say whose they are.
_NETWORKS: tuple[tuple[str, str], ...] = (
    ("RepVGGplus", r"stage\d+(?:_first|_second)?\.blocks\.\d+\.rbr_|stage\d+.*\.post_se\."),
    (
        "MobileOne",
        r"stage\d+\.(?:\d+\.)?(?:rbr_(?:scale|skip|conv)|branch_(?:scale|conv_list))\."
        r"|(?:stem|stages\.\d+\.\d+)\.conv_(?:scale|kxk\.\d+)\.",
    ),
    ("YOLOv6", r"ERBlock_\d+\."),
    ("YOLOX", r"(?:backbone\.)?(?:dark|stage)\d\.\d\.(?:conv|main_conv|conv1)\.conv\."),
    ("YOLO", r"\d+\.(?:cv\d+|m\.\d+|rbr_dense|conv)\."),
    ("UniRepLKNet", r"stages\.\d+\.\d+\.dwconv\.(?:lk_origin|origin_bn|dil_)"),
    ("SLaK", r"stages\.\d+\.\d+\.large_kernel\."),
    (
        "ConvNeXt",
        r"stages\.\d+\.blocks\.\d+\.(?:conv_dw|gamma)|stages\.\d+\.\d+\.(?:dwconv\.weight|gamma"
        r"|depthwise_conv)|features\.\d+\.\d+\.layer_scale",
    ),
    ("FastViT", r"(?:stem\.\d+|stages\.\d+\.blocks\.\d+\..*)\.conv_kxk\.\d+\."),
    ("RepViT", r"stages\.\d+\.blocks\.\d+\.token_mixer\.conv\.c\.|stem\.conv1\.c\."),
    ("MetaFormer (CAFormer, PoolFormer)", r"stages\.\d+\.blocks\.\d+\.(?:token_mixer|layer_scale)"),
    ("ResNetV2 (pre-activation)", r"stages\.\d+\.blocks\.\d+\.norm[123]\.|layer\d+\.\d+\.shortcut"),
    (
        "a ResNet in transformers' naming",
        r"(?:resnet\.)?(?:embedder\.embedder|encoder\.stages)\.\d*",
    ),
    ("a MobileNetV2 in transformers' naming", r"mobilenet_v2\.conv_stem\."),
    ("a ResNet in Detectron2's naming", r"(?:stem\.conv1\.norm|res[2-5]\.\d+\.conv1)\."),
    ("ShuffleNetV2", r"stage\d\.\d+\.branch[12]\."),
    ("HRNet", r"stage\d\.\d+\.branches\.|transition\d\.\d"),
    ("ResNeSt", r"layer\d+\.\d+\.conv2\.fc1"),
    ("Res2Net", r"layer\d+\.\d+\.convs\."),
    ("SKNet", r"layer\d+\.\d+\.conv\d\.(?:attn|paths)"),
    ("TResNet", r"(?:body\.)?layer\d+\.\d+\.conv\d\.conv\."),
    (
        "a ResNet with squeeze-excite or another attention (SE, ECA, CBAM)",
        r"layer\d+\.\d+\.(?:se|se_module|se_layer|attn|eca|cbam|ca|sa|context_block)\.",
    ),
    ("a ResNet-C or ResNet-D, with a stem of three convolutions", r"conv1\.[36]\.weight"),
    ("RegNet", r"trunk_output\.block\d|s[1-4]\.b\d+\.conv1\."),
    ("DenseNet", r"features\.denseblock\d"),
    (
        "EfficientNet or MobileNetV3",
        r"blocks\.\d+\.\d+\.(?:se\.|conv_(?:pw|dw|pwl)\.\d)|(?:features\.)?\d+\.(?:\d+\.)?block\."
        r"|conv_head\.bias|_blocks\.\d+\._",
    ),
    ("Swin Transformer", r"(?:layers\.\d+\.blocks|features\.\d+)\.\d+\.attn\."),
    (
        "a vision transformer",
        r"(?:cls_token|class_token|pos_embed|patch_embed)|(?:blocks|layers|layer)\.\d+\.attn"
        r"|encoder\.layers?\.",
    ),
    ("VGG, AlexNet or SqueezeNet", r"features\.\d+\.weight"),
    ("Inception", r"Mixed_\d|inception\da\."),
)

# In the stem of a ResNet-C or -D in the naming of mmpretrain and mmsegmentation ("ResNetV1c").
_DEEP_STEM = re.compile(r"stem\.\d\.")
_RESNET = re.compile(r"layer\d+\.\d+\.conv\d\.weight")
_USUAL_PREFIXES = r"(?:(?:module|model|backbone|body|net|network|encoder|student|teacher)\.)*"

_AT_START = [(label, re.compile(pattern)) for label, pattern in _NETWORKS]
_AFTER_USUAL_PREFIXES = [
    (label, re.compile(rf"{_USUAL_PREFIXES}(?:{pattern})")) for label, pattern in _NETWORKS
]


def identify(names: Iterable[str]) -> str | None:
    """The unsupported network that tensors of these names are of; None if there is none.

    Args:
      names: of all tensors of one network, without a prefix.
    """
    names = list(names)
    if any(map(_DEEP_STEM.match, names)) and any(map(_RESNET.match, names)):
        return "a ResNet-C or ResNet-D, with a stem of three convolutions"
    return _first(names, _AT_START)


def identify_with_prefix(names: Iterable[str]) -> str | None:
    """As `identify`, of names that may have a prefix, such as "backbone."."""
    return _first(list(names), _AFTER_USUAL_PREFIXES)


def message(label: str, known: str) -> str:
    """What to tell whoever loads such a file; `known` lists the networks that are supported."""
    return (
        f"its tensors are named as those of {label}, which is not one of the networks known here, "
        f"{known}."
    )


def _first(names: list[str], networks: list[tuple[str, re.Pattern[str]]]) -> str | None:
    for label, pattern in networks:
        if any(map(pattern.match, names)):
            return label
    return None
