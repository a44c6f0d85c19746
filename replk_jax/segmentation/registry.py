"""The usual segmentation networks: heads by name on any backbone, and the networks of papers."""

from collections.abc import Mapping
from typing import Any

from replk_jax.models.aliases import matching, spelt
from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite_creation import (
    NETWORK_FIELDS,
    build_backbone,
    describe_unknown,
    required_arguments,
)
from replk_jax.models.parts import own_fields
from replk_jax.segmentation.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.head import SegmentationHead
from replk_jax.segmentation.pspnet import PSPHead
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.segmentation.table import SEGMENTERS
from replk_jax.segmentation.upernet import UPerHead

DECODE_HEADS: dict[str, type[SegmentationHead]] = {
    "upernet": UPerHead,
    "pspnet": PSPHead,
    "deeplabv3": DeepLabV3Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "fcn": FCNHead,
}
# The fields that the network decides, for its backbone and its heads.
_OF_NETWORK = ("align_corners", *NETWORK_FIELDS)


def list_segmenters(pattern: str = "*") -> list[str]:
    """The names of segmentation networks of papers that match a shell-style pattern.

    If none matches, case, hyphens and underscores are ignored.
    """
    return matching(pattern, SEGMENTERS)


def find_segmenter(name: str) -> str | None:
    """The name in `SEGMENTERS` that equals `name` but for case, hyphens and underscores."""
    return spelt(name, SEGMENTERS)


def create_segmenter(
    name: str,
    backbone: str | Architecture | Backbone | None = None,
    num_classes: int | None = None,
    *,
    backbone_options: Mapping[str, Any] | None = None,
    auxiliary_channels: int | None = 256,
    auxiliary_index: int = -2,
    dropout_rate: float = 0.1,
    **fields: Any,
) -> SegmentationNetwork:
    """Builds a segmentation network.

        create_segmenter("upernet", "replknet_31b", num_classes=150)
        create_segmenter("deeplabv3plus", "mobilenet_v2", num_classes=19,
                         backbone_options={"output_stride": 8, "contract_dilation": False})
        create_segmenter("pspnet", "resnet_50", num_classes=19,
                         backbone_options={"output_stride": 8})
        create_segmenter("upernet_replknet_31b_ade20k")
        create_segmenter("upernet_replknet_31b_ade20k", num_classes=2, channels=256)

    The defaults are mmsegmentation's, except that no backbone is dilated unless `output_stride` is
    among its options: without it, PSPNet's and DeepLabv3's logits have a 32nd of the images' size.
    `resnet_50` is torchvision's network; that of mmsegmentation's configurations is ResNetV1c, with
    three convolutions in its stem, which this package does not have.

    Args:
      name: of the decode head (upernet, pspnet, deeplabv3, deeplabv3plus or fcn); or of a network
        (`list_segmenters`), which determines all other arguments that are not given. Case, hyphens
        and underscores are ignored.
      backbone: the name of a model or an architecture; or a backbone with `out_indices`. Not with
        the name of a network.
      num_classes: K.
      backbone_options: arguments of `create_model` for a backbone by name or architecture, such as
        `drop_path_rate` and `output_stride`. `out_indices` is by default, of the last four sizes
        of feature maps, the last stage of each: all stages of most families, and stages 1, 2, 4
        and 6 of MobileNet V2.
      auxiliary_channels: width of the auxiliary FCN head, which has one convolution; None for no
        such head.
      auxiliary_index: of its feature map among those of the backbone; negative numbers count from
        the end.
      dropout_rate: of both heads.
      **fields: of the decode head (`channels`, `pool_scales`, ...) or of `SegmentationNetwork`
        (`align_corners`, `deploy`, `dtype`, `param_dtype`, `implementation`, `remat`).

    Raises:
      ValueError: an unknown name, or invalid values.
      TypeError: an unknown field, or arguments that are missing or exclude each other.
    """
    options = dict(backbone_options or {})
    if known := find_segmenter(name):
        row = SEGMENTERS[known]
        if backbone is not None:
            raise TypeError(
                f"{known} has the backbone {row.backbone}: leave out backbone, or use "
                f"create_segmenter({row.head!r}, backbone, ...)."
            )
        name, backbone = row.head, row.backbone
        num_classes = row.num_classes if num_classes is None else num_classes
        options, fields = {**row.backbone_options, **options}, {**row.fields, **fields}
    if (known_head := spelt(name, DECODE_HEADS)) is None:
        raise ValueError(_unknown(name))
    name = known_head
    backbone, num_classes = required_arguments("create_segmenter", name, backbone, num_classes)

    head = DECODE_HEADS[name]
    of_network = {field: fields.pop(field) for field in _OF_NETWORK if field in fields}
    of_head = own_fields(head) - {"dropout_rate"}
    if unknown := sorted(set(fields) - of_head):
        raise TypeError(
            f"Unknown field {', '.join(unknown)}. {head.__name__} takes "
            f"{', '.join(sorted(of_head))}, and the network {', '.join(_OF_NETWORK)}. "
            "Fields of the backbone go into backbone_options."
        )
    auxiliary = None
    if auxiliary_channels is not None:
        auxiliary = FCNHead(
            channels=auxiliary_channels,
            in_index=auxiliary_index,
            num_convs=1,
            concat_input=False,
            dropout_rate=dropout_rate,
        )
    network = SegmentationNetwork(
        backbone=build_backbone(backbone, options, "create_segmenter"),
        num_classes=num_classes,
        decode_head=head(**fields, dropout_rate=dropout_rate),
        auxiliary_head=auxiliary,
        **of_network,
    )
    network.check_fields()
    return network


def _unknown(name: str) -> str:
    """The message for a name that is neither a head nor a network."""
    unknown = describe_unknown("segmentation network", name, [*DECODE_HEADS, *SEGMENTERS])
    return (
        f"{unknown} Decode heads are {', '.join(DECODE_HEADS)}; list_segmenters() has the names of "
        "whole networks."
    )
