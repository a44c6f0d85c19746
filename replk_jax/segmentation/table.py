"""The segmentation networks of the papers, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class NamedSegmenter:
    """The arguments of `create_segmenter` for a network.

    Attributes:
      head: name of the decode head.
      backbone: name of the backbone.
      num_classes: of the data set.
      image_size: (height, width) at which the network is tested, and counted where counts were
        published.
      backbone_options, fields: as of `create_segmenter`.
    """

    head: str
    backbone: str
    num_classes: int
    image_size: tuple[int, int]
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_ADE20K, _CITYSCAPES = 150, 19

# RepLKNet's configurations (arXiv:2203.06717, Table 6 and section 4.3). The two networks on
# ADE20K with a 31B backbone, pre-trained on ImageNet-1K and 22K, differ only in their weights.
_REPLKNET = {
    "upernet_replknet_31b_ade20k": NamedSegmenter("upernet", "replknet_31b", _ADE20K, (512, 2048)),
    "upernet_replknet_31l_ade20k": NamedSegmenter("upernet", "replknet_31l", _ADE20K, (640, 2560)),
    "upernet_replknet_xl_ade20k": NamedSegmenter(
        "upernet",
        "replknet_xl",
        _ADE20K,
        (640, 2560),
        backbone_options={"norm_intermediate_features": True},
    ),
    "upernet_replknet_31b_cityscapes": NamedSegmenter(
        "upernet", "replknet_31b", _CITYSCAPES, (1024, 2048), fields={"align_corners": True}
    ),
}


def _pspnet(backbone: str, width: int, **options: Any) -> NamedSegmenter:
    """RepVGG's PSPNet: every branch of the pyramid has a quarter of the backbone's width."""
    return NamedSegmenter(
        "pspnet",
        backbone,
        _CITYSCAPES,
        (713, 713),
        backbone_options={"output_stride": 8, "contract_dilation": False, **options},
        fields={"pool_channels": width // 4, "align_corners": True},
    )


# RepVGG's paper (arXiv:2101.03697), section 4.3, and the example in its code. That does not give
# the dilations of the "fast" networks: here the last layers keep the 2 and 4 of the others.
_REPVGG = {
    "pspnet_repvgg_b1g2_cityscapes": _pspnet("repvgg_b1g2", 2048),
    "pspnet_repvgg_b1g2_fast_cityscapes": _pspnet("repvgg_b1g2", 2048, dilated_layers=5),
    "pspnet_repvgg_b2_cityscapes": _pspnet("repvgg_b2", 2560),
    "pspnet_repvgg_b2_fast_cityscapes": _pspnet("repvgg_b2", 2560, dilated_layers=5),
}

# RepLKNet's paper, Tables 3 and 4: DeepLabv3+ with MMSegmentation's defaults, which are those of
# its MobileNet V2. The paper does not say whether large kernels are dilated; here they are.
_MOBILENET_V2 = {
    f"{head}_{backbone}_cityscapes": NamedSegmenter(
        head,
        backbone,
        _CITYSCAPES,
        (1024, 2048),
        backbone_options={"output_stride": 8, "contract_dilation": False},
    )
    for head in ("deeplabv3plus", "deeplabv3")
    for backbone in (
        "mobilenet_v2",
        "mobilenet_v2_9",
        "mobilenet_v2_9_reparam",
        "mobilenet_v2_13",
        "mobilenet_v2_13_reparam",
        "mobilenet_v2_last_7",
        "mobilenet_v2_last_13",
    )
}

SEGMENTERS: dict[str, NamedSegmenter] = {**_REPLKNET, **_REPVGG, **_MOBILENET_V2}
