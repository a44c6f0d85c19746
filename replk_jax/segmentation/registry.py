"""The usual segmentation networks: heads by name, on any backbone."""

import dataclasses
from typing import Any

from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.registry import create_model
from replk_jax.segmentation.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.head import SegmentationHead
from replk_jax.segmentation.pspnet import PSPHead
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.segmentation.upernet import UPerHead

DECODE_HEADS: dict[str, type[SegmentationHead]] = {
    "upernet": UPerHead,
    "pspnet": PSPHead,
    "deeplabv3": DeepLabV3Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "fcn": FCNHead,
}


def create_segmenter(
    name: str,
    backbone: str | Architecture | Backbone,
    num_classes: int,
    *,
    auxiliary_channels: int | None = 256,
    **fields: Any,
) -> SegmentationNetwork:
    """Builds a segmentation network.

        create_segmenter("upernet", "replknet_31b", num_classes=150)
        create_segmenter("deeplabv3plus", create_model("mobilenet_v2", features_only=True,
                         output_stride=8), num_classes=19, channels=512)

    Args:
      name: of the decode head: upernet, pspnet, deeplabv3, deeplabv3plus or fcn.
      backbone: a name or an architecture, of which all stages are used; or a backbone with
        `out_indices`.
      num_classes: K.
      auxiliary_channels: width of the auxiliary FCN head on the second-to-last feature map; None
        for no such head.
      **fields: of the decode head (`channels`, `pool_scales`, ...) or of `SegmentationNetwork`
        (`align_corners`, `dtype`, ...).
    """
    head = DECODE_HEADS[name]
    if not isinstance(backbone, Backbone):
        backbone = create_model(backbone, num_classes=None, features_only=True)
    of_network = {field.name for field in dataclasses.fields(SegmentationNetwork)}
    of_head = {key: fields.pop(key) for key in set(fields) - of_network}
    auxiliary = auxiliary_channels and FCNHead(
        channels=auxiliary_channels, in_index=-2, num_convs=1, concat_input=False
    )
    return SegmentationNetwork(
        backbone=backbone,
        num_classes=num_classes,
        decode_head=head(**of_head),
        auxiliary_head=auxiliary or None,
        **fields,
    )
