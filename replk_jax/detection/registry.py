"""The usual detection networks: kinds by name on any backbone, and the networks of papers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.roi_heads import CascadeRoIHead, RoIHead, StandardRoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.single_stage import SingleStageDetector
from replk_jax.detection.table import DETECTORS
from replk_jax.detection.two_stage import TwoStageDetector
from replk_jax.models.aliases import matching, spelt
from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite_creation import (
    NETWORK_FIELDS,
    build_backbone,
    describe_unknown,
    required_arguments,
)
from replk_jax.models.parts import NetworkPart, own_fields


@dataclasses.dataclass(frozen=True)
class DetectorKind:
    """A kind of detection network, as `create_detector` builds it.

    Attributes:
      network: the class.
      parts: from the names of its fields to the classes of its parts.
      prefixes: from the names of its fields to what precedes, with an underscore, the names of the
        part's fields among the arguments of `create_detector`. The fields of other parts have
        their own names.
      defaults: arguments of `create_detector` that differ from the defaults of the parts.
    """

    network: type[DetectionNetwork]
    parts: Mapping[str, type[NetworkPart]]
    prefixes: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def part_fields(self) -> dict[str, tuple[str, str]]:
        """From each argument for a part to the name of the part and the name of the field."""
        return {
            f"{self.prefixes[part]}_{field}" if part in self.prefixes else field: (part, field)
            for part, kind in self.parts.items()
            for field in sorted(own_fields(kind))
        }

    def build(
        self, backbone: Backbone, num_classes: int, fields: Mapping[str, Any]
    ) -> DetectionNetwork:
        """Builds a network.

        Args:
          backbone: with `out_indices`.
          num_classes: K.
          fields: of the network and of its parts.

        Raises:
          TypeError: an unknown field.
        """
        known = self.part_fields()
        of_network: dict[str, Any] = {}
        of_parts: dict[str, dict[str, Any]] = {part: {} for part in self.parts}
        for name, value in {**self.defaults, **fields}.items():
            if name in NETWORK_FIELDS:
                of_network[name] = value
            elif name in known:
                part, field = known[name]
                of_parts[part][field] = value
        if unknown := sorted(set(fields) - {*known, *NETWORK_FIELDS}):
            raise TypeError(
                f"Unknown field {', '.join(unknown)}. The parts take {', '.join(known)}, and the "
                f"network {', '.join(NETWORK_FIELDS)}. Fields of the backbone go into "
                "backbone_options."
            )
        parts = {part: kind(**of_parts[part]) for part, kind in self.parts.items()}
        return self.network(backbone=backbone, num_classes=num_classes, **parts, **of_network)


def _two_stage(roi_head: type[RoIHead], defaults: Mapping[str, Any]) -> DetectorKind:
    parts = {"neck": FPN, "rpn_head": RPNHead, "roi_head": roi_head}
    return DetectorKind(TwoStageDetector, parts, {"neck": "neck", "rpn_head": "rpn"}, defaults)


# Where the RPN of mmdetection's Faster and Mask R-CNN differs from that of its Cascade R-CNN.
_STANDARD_RPN = {
    "rpn_smooth_l1_beta": 0.0,
    "rpn_train_post_nms": 1000,
    "rpn_anchors_inside": False,
}

KINDS: dict[str, DetectorKind] = {
    "fcos": DetectorKind(
        SingleStageDetector,
        {"neck": FPN, "bbox_head": FCOSHead},
        {"neck": "neck"},
        {
            "neck_start_level": 1,
            "neck_extra_convs": True,
            "neck_relu_before_extra_convs": True,
        },
    ),
    "faster_rcnn": _two_stage(StandardRoIHead, {**_STANDARD_RPN, "masks": False}),
    "mask_rcnn": _two_stage(StandardRoIHead, {**_STANDARD_RPN, "match_low_quality": True}),
    "cascade_rcnn": _two_stage(
        CascadeRoIHead, {"masks": False, "class_agnostic": True, "box_loss": "smooth_l1"}
    ),
    # RepLKNet's configurations (arXiv:2203.06717); all else is mmdetection's.
    "cascade_mask_rcnn": _two_stage(
        CascadeRoIHead, {"box_convs": 4, "box_fcs": 1, "box_loss": "giou", "box_loss_weight": 10.0}
    ),
}


def list_detectors(pattern: str = "*") -> list[str]:
    """The names of detection networks of papers that match a shell-style pattern.

    If none matches, case, hyphens and underscores are ignored.
    """
    return matching(pattern, DETECTORS)


def find_detector(name: str) -> str | None:
    """The name in `DETECTORS` that equals `name` but for case, hyphens and underscores."""
    return spelt(name, DETECTORS)


def create_detector(
    name: str,
    backbone: str | Architecture | Backbone | None = None,
    num_classes: int | None = None,
    *,
    backbone_options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> DetectionNetwork:
    """Builds a detection network.

        create_detector("fcos", "replknet_31b", num_classes=80)
        create_detector("fcos", "resnet_50", num_classes=20, max_detections=300, neck_channels=128)
        create_detector("cascade_mask_rcnn", "replknet_31b", num_classes=80, rpn_channels=128)
        create_detector("fcos_replknet_31b_coco")
        create_detector("fcos_replknet_31b_coco", num_classes=2)

    The defaults are mmdetection's.

    Args:
      name: of the kind of network (`KINDS`); or of a network (`list_detectors`), which determines
        all other arguments that are not given. Case, hyphens and underscores are ignored.
      backbone: the name of a model or an architecture; or a backbone with `out_indices`. Not with
        the name of a network.
      num_classes: K.
      backbone_options: arguments of `create_model` for a backbone by name or architecture, such as
        `drop_path_rate`. `out_indices` is by default, of the last four sizes of feature maps, the
        last stage of each.
      **fields: of the heads (`score_threshold`, `max_detections`, ...), of the neck and of the RPN,
        preceded by `neck_` and `rpn_` (`neck_channels`, `rpn_channels`, ...), or of the network
        (`deploy`, `dtype`, `param_dtype`, `implementation`, `remat`).

    Raises:
      ValueError: an unknown name, or invalid values.
      TypeError: an unknown field, or arguments that are missing or exclude each other.
    """
    options = dict(backbone_options or {})
    if known := find_detector(name):
        row = DETECTORS[known]
        if backbone is not None:
            raise TypeError(
                f"{known} has the backbone {row.backbone}: leave out backbone, or use "
                f"create_detector({row.kind!r}, backbone, ...)."
            )
        name, backbone = row.kind, row.backbone
        num_classes = row.num_classes if num_classes is None else num_classes
        options, fields = {**row.backbone_options, **options}, {**row.fields, **fields}
    if (kind := spelt(name, KINDS)) is None:
        unknown = describe_unknown("detection network", name, [*KINDS, *DETECTORS])
        raise ValueError(
            f"{unknown} Kinds are {', '.join(KINDS)}; list_detectors() has the names of whole "
            "networks."
        )
    backbone, num_classes = required_arguments("create_detector", kind, backbone, num_classes)
    built = build_backbone(backbone, options, "create_detector")
    network = KINDS[kind].build(built, num_classes, fields)
    network.check_fields()
    return network
