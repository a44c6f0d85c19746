"""Identifies heads of mmdetection that are not supported, by the names of their modules."""

import re
from collections.abc import Iterable

# Names of heads, each with patterns of the start of their tensors' names. No supported head
# matches.
_HEADS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("RetinaHead", r"bbox_head\.retina_(?:cls|reg)\."),
        ("ATSSHead", r"bbox_head\.atss_(?:cls|reg|centerness)\."),
        ("GFLHead", r"bbox_head\.gfl_(?:cls|reg)\.|bbox_head\.integral\."),
        ("VFNetHead", r"bbox_head\.vfnet_"),
        ("RTMDetHead", r"bbox_head\.rtm_"),
        ("YOLOXHead", r"bbox_head\.multi_level_"),
        ("YOLOV3Head", r"bbox_head\.convs_(?:bridge|pred)\."),
        ("RepPointsHead", r"bbox_head\.reppoints_"),
        ("CenterNetHead", r"bbox_head\.(?:heatmap|wh|offset)_head\."),
        ("SSDHead", r"bbox_head\.(?:cls|reg)_convs\.\d+\.\d+\."),
        (
            "a DETR head",
            r"bbox_head\.(?:transformer|cls_branches|reg_branches|fc_cls|input_proj)\.",
        ),
        ("a box head of mmdetection 1", r"bbox_head\.(?:\d+\.)?shared_(?:fcs|convs)\."),
        ("HTCRoIHead", r"roi_head\.(?:semantic_head|semantic_roi_extractor)\."),
        ("MaskScoringRoIHead", r"roi_head\.mask_iou_head\."),
        ("PointRendRoIHead", r"roi_head\.point_head\."),
        ("GridRoIHead", r"roi_head\.grid_head\."),
        ("DoubleHeadRoIHead", r"roi_head\.bbox_head\.(?:conv_branch|fc_branch|res_block)\."),
        ("SparseRoIHead", r"roi_head\.bbox_head\.\d+\.(?:attention|instance_interactive_conv)\."),
        ("GARPNHead", r"rpn_head\.conv_(?:loc|shape|adaption|cls)\.|rpn_head\.feature_adaption"),
    )
)


def identify(names: Iterable[str]) -> str | None:
    """The unsupported head of tensors, by names without a prefix; None if unknown."""
    names = list(names)
    return next((head for head, mark in _HEADS if any(map(mark.match, names))), None)
