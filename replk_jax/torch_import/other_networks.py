"""Identifies well-known unsupported networks by the names of their tensors.

Otherwise the error would be about the most similar supported network, and list missing tensors.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# The start of names in blocks in timm: of most networks, of ByobNet and of EfficientNet. With
# features_only=True the stages are at the top level, as "stages_0".
_BLOCK = r"stages[._]\d+\.blocks\.\d+\."
_BYOB_BLOCK = r"stages[._]\d+\.\d+\."
_MOBILE_BLOCK = r"blocks\.\d+\.\d+\."

_DEEP_STEM = "a ResNet-C or ResNet-D, with a stem of three convolutions"

# Labels, each with patterns of the start of names. A network matches if every pattern matches a
# tensor. No supported network matches. The first match is used.
_NETWORKS: tuple[tuple[str, ...], ...] = (
    ("RepVGGplus", r"stage\d+(?:_first|_second)?\.blocks\.\d+\.rbr_|stage\d+.*\.post_se\."),
    (
        "MobileOne",
        r"stage\d+\.(?:\d+\.)?(?:rbr_(?:scale|skip|conv)|branch_(?:scale|conv_list))\."
        rf"|(?:stem\.|{_BYOB_BLOCK})conv_(?:scale|kxk\.\d+)\.",
    ),
    ("YOLOv6", r"ERBlock_\d+\."),
    ("YOLOX", r"(?:backbone\.)?(?:dark|stage)\d\.\d\.(?:conv|main_conv|conv1)\.conv\."),
    ("YOLO", r"\d+\.(?:cv\d+|m\.\d+|rbr_dense|conv)\."),
    ("UniRepLKNet", r"stages\.\d+\.\d+\.dwconv\.(?:lk_origin|origin_bn|dil_)"),
    ("SLaK", r"stages\.\d+\.\d+\.large_kernel\."),
    # Among timm's networks with blocks in stages, those with the rarest names come first.
    ("EdgeNeXt", rf"{_BLOCK}(?:xca|gamma_xca|pos_embd)\b"),
    ("InceptionNeXt", rf"{_BLOCK}token_mixer\.dwconv_hw\."),
    (
        "CoAtNet or MaxViT",
        rf"{_BLOCK}(?:(?:conv\.)?(?:shortcut\.expand|pre_norm)|attn_(?:block|grid))\."
        r"|blocks\.\d+\.layers\.\d+\.layers\.(?:MBconv|window_attention)\.",
    ),
    ("GCViT", r"stages[._]\d+\.global_block\."),
    ("Next-ViT", rf"{_BLOCK}(?:mhca|e_mhsa)\."),
    ("PVTv2", rf"(?:{_BLOCK}|block\d\.\d+\.)mlp\.dwconv\."),
    ("MViT", rf"(?:{_BLOCK}|blocks\.\d+\.)attn\.pool_[qkv]\."),
    ("Sequencer", rf"{_BLOCK}rnn_tokens\."),
    ("SwiftFormer", rf"{_BLOCK}local_representation\."),
    ("EfficientFormer", rf"{_BLOCK}token_mixer\.attention_bias"),
    ("iFormer", rf"{_BLOCK}mixer\.module\."),
    ("RepViT", rf"{_BLOCK}token_mixer\.conv\.c\."),
    (
        "FastViT",
        rf"stem[._]\d+\.conv_kxk\.\d+\.|{_BLOCK}token_mixer\.mixer\."
        rf"|{_BLOCK}.*\.conv_kxk\.\d+\.",
    ),
    (
        "MetaFormer (CAFormer, PoolFormer)",
        rf"{_BLOCK}(?:token_mixer\.(?:act1|pwconv1|sep_conv)|layer_scale\d\.scale|res_scale\d)\b"
        rf"|{_BLOCK}mlp\.act\.scale",
    ),
    ("FasterNet", rf"{_BLOCK}spatial_mixing\."),
    ("EfficientViM", rf"{_BLOCK}mixer\.hz_proj\."),
    ("SHViT", rf"{_BLOCK}conv\.m\.c\."),
    ("EfficientViT", rf"{_BLOCK}(?:mixer\.m\.attn|main\.inverted_conv|context_module)\."),
    ("LeViT", rf"{_BLOCK}attn\.(?:qkv\.linear|attention_biases)", r"stem\.conv1\.linear\."),
    ("TinyViT", rf"{_BLOCK}local_conv\."),
    ("DaViT", rf"{_BLOCK}\d+\.cpe\d\."),
    ("HGNet", rf"{_BLOCK}aggregation\."),
    ("VoVNet", rf"{_BLOCK}conv_concat\."),
    ("MambaOut", rf"{_BLOCK}fc1\.", rf"{_BLOCK}conv\."),
    ("ResNetV2 (pre-activation)", r"stem[._]conv\.", rf"{_BLOCK}norm[123]\."),
    ("ResNetV2 (pre-activation)", r"layer\d+\.\d+\.shortcut"),
    ("DarkNet or CSPNet", r"stages[._]\d+\.conv_(?:down|exp|transition)\."),
    ("CSPNeXt", rf"{_BYOB_BLOCK}main_conv\."),
    ("StarNet", rf"{_BYOB_BLOCK}f1\.conv\.", rf"{_BYOB_BLOCK}dwconv\.conv\."),
    ("LCNetV2", rf"{_BYOB_BLOCK}pw_conv\."),
    ("LowFormer or CPUBone", rf"{_BYOB_BLOCK}main\.spatial_conv\."),
    ("a ResNet without normalization (NFNet)", r"stem\.conv\d?\.gain"),
    ("MobileViT", rf"{_BYOB_BLOCK}transformer\."),
    ("a ResNet with self-attention (BoTNet, HaloNet)", rf"{_BYOB_BLOCK}self_attn\."),
    (
        "a network that timm builds as ByobNet (ResNet-33ts, ResNet-51q, GENet, RegNetZ)",
        rf"{_BYOB_BLOCK}conv\d_(?:1x1|kxk)\.",
    ),
    ("RDNet", r"dense_stages[._]\d+\."),
    ("CSATv2", r"stem_dct\."),
    (
        "ConvNeXt",
        rf"{_BLOCK}(?:conv_dw|gamma)|stages\.\d+\.\d+\.(?:dwconv\.weight|gamma|depthwise_conv)"
        r"|features\.\d+\.\d+\.layer_scale",
    ),
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
    ("a ResNet for video", r"stem\.\d\.weight", r"layer\d+\.\d+\.conv\d\.0\."),
    (
        "a ResNet with squeeze-excite or another attention (SE, ECA, CBAM)",
        r"layer\d+\.\d+\.(?:se|se_module|se_layer|attn|eca|cbam|ca|sa|context_block)\.",
    ),
    (_DEEP_STEM, r"conv1\.[36]\.weight"),
    # In the naming of mmpretrain and mmsegmentation ("ResNetV1c").
    (_DEEP_STEM, r"stem\.\d\.", r"layer\d+\.\d+\.conv\d\.weight"),
    ("RegNet", r"trunk_output\.block\d|s[1-4]\.b\d+\.conv1\."),
    ("DenseNet", r"features\.denseblock\d"),
    ("GhostNet", rf"{_MOBILE_BLOCK}ghost\d\."),
    (
        "MobileNetV4 or MobileNetV5",
        rf"{_MOBILE_BLOCK}(?:dw_start|dw_mid|pw_exp|pw_proj|layer_scale)\.",
    ),
    ("MnasNet", r"layers\.\d+\.\d+\.layers\.\d+\."),
    ("ReXNet", r"features\.\d+\.conv_(?:dw|pwl)\."),
    (
        "EfficientNet or MobileNetV3, or of a relative in timm (MixNet, FBNet, HardCoRe-NAS)",
        rf"{_MOBILE_BLOCK}(?:se\.|conv_exp\.|conv_(?:pw|dw|pwl)\.\d)"
        r"|(?:features\.)?\d+\.(?:\d+\.)?block\.|conv_head\.bias|_blocks\.\d+\._",
    ),
    ("Mix Transformer (of SegFormer)", r"layers\.\d+\.1\.\d+\.attn\.attn\."),
    (
        "Swin Transformer",
        rf"{_BLOCK}attn\.w_msa\.|(?:layers\.\d+\.blocks|features\.\d+)\.\d+\.attn\.|{_BLOCK}attn\.meta_mlp\.",
    ),
    ("FocalNet", r"layers\.\d+\.blocks\.\d+\.modulation\."),
    ("an MLP (MLP-Mixer, ResMLP, gMLP)", r"blocks\.\d+\.(?:mlp_tokens|mlp_channels)\."),
    (
        "a vision transformer",
        r"(?:cls_token|class_token|pos_embed|patch_embed)|(?:blocks|layers|layer)\.\d+\.attn"
        r"|encoder\.layers?\.",
    ),
    ("RAFT", r"feature_encoder\.convnormrelu\."),
    ("DLA", r"level\d\.tree\d\."),
    ("DPN", r"features\.conv\d_\d+\.c1x1_"),
    ("Xception", r"blocks\.\d+\.stack\.conv\d\.|block\d+\.rep\.\d"),
    ("NASNet", r"cell_stem_\d\."),
    ("Inception", r"[Mm]ixed_\d|inception\da\.|features\.\d+\.branch\d"),
    ("VGG, AlexNet or SqueezeNet", r"features[._]\d+\.weight"),
)

_USUAL_PREFIXES = r"(?:(?:module|model|backbone|body|net|network|encoder|student|teacher)\.)*"
_RESNET = re.compile(r"layer\d+\.\d+\.conv\d\.weight")


def _compiled(prefix: str) -> list[tuple[str, list[re.Pattern[str]]]]:
    return [
        (label, [re.compile(f"{prefix}(?:{mark})") for mark in marks])
        for label, *marks in _NETWORKS
    ]


_AT_START = _compiled("")
_AFTER_USUAL_PREFIXES = _compiled(_USUAL_PREFIXES)


def identify(tensors: Mapping[str, Any]) -> str | None:
    """The unsupported network of tensors; None if unknown.

    Args:
      tensors: of one network, by names without a prefix; only the `shape` of each is used.
    """
    return _first(tensors, _AT_START) or _by_shapes(tensors)


def identify_with_prefix(names: Iterable[str]) -> str | None:
    """As `identify`, of names alone, which may have a prefix, such as "backbone."."""
    return _first(list(names), _AFTER_USUAL_PREFIXES)


def _by_shapes(tensors: Mapping[str, Any]) -> str | None:
    """As `identify`, for networks with the names of supported ones."""
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
    depthwise = {shape[-1:] for name, shape in shapes.items() if name.endswith("conv_dw.weight")}
    if {(3,), (5,)} <= depthwise:  # some also have other activations
        return "EfficientNet-Lite, MnasNet or FBNet, with kernels of 3 x 3 and of 5 x 5"
    has_norms = any(
        shapes.get(name.removesuffix("weight") + "bias") == shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 1
    )
    if has_norms and not any(name.endswith(".running_var") for name in shapes):
        network = "a ResNet" if any(map(_RESNET.match, shapes)) else "a network"
        return f"{network} with group norm, or saved without its running statistics"
    return None


def message(label: str, known: str) -> str:
    """The error for a file of such a network; `known` lists the supported networks."""
    return (
        f"its tensors have the names of {label}, which is not one of the supported networks, "
        f"{known}."
    )


def _first(names: Collection[str], networks: list[tuple[str, list[re.Pattern[str]]]]) -> str | None:
    for label, marks in networks:
        if all(any(map(mark.match, names)) for mark in marks):
            return label
    return None
