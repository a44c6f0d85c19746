"""The detection networks of the papers, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class NamedDetector:
    """The arguments of `create_detector` for a network.

    Attributes:
      kind: name of the kind of network, such as "fcos".
      backbone: name of the backbone.
      num_classes: of the data set.
      image_size: (height, width) for which counts were published.
      backbone_options, fields: as of `create_detector`.
    """

    kind: str
    backbone: str
    num_classes: int
    image_size: tuple[int, int]
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_COCO, _COCO_SIZE = 80, (800, 1280)

# RepLKNet's configurations (arXiv:2203.06717, Table 7 and section 4.4). Networks with a 31B
# backbone, pre-trained on ImageNet-1K and 22K, differ only in their weights.
DETECTORS: dict[str, NamedDetector] = {
    "fcos_replknet_31b_coco": NamedDetector("fcos", "replknet_31b", _COCO, _COCO_SIZE),
    "cascade_mask_rcnn_replknet_31b_coco": NamedDetector(
        "cascade_mask_rcnn", "replknet_31b", _COCO, _COCO_SIZE
    ),
    "cascade_mask_rcnn_replknet_31l_coco": NamedDetector(
        "cascade_mask_rcnn", "replknet_31l", _COCO, _COCO_SIZE
    ),
    "cascade_mask_rcnn_replknet_xl_coco": NamedDetector(
        "cascade_mask_rcnn",
        "replknet_xl",
        _COCO,
        _COCO_SIZE,
        backbone_options={"norm_intermediate_features": True},
    ),
}
