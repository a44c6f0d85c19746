"""Detectors in mmdetection's files: names and shapes of their necks and heads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.pretrained_table import PRETRAINED_DETECTORS
from replk_jax.detection.roi_heads import CascadeRoIHead, RoIHead, StandardRoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.single_stage import SingleStageDetector
from replk_jax.detection.two_stage import TwoStageDetector
from replk_jax.io.text import brief
from replk_jax.models.backbone import Backbone
from replk_jax.models.description import joined
from replk_jax.models.parts import NetworkPart
from replk_jax.torch_import import mm_detection
from replk_jax.torch_import.composite_backbones import (
    stages_of_widths,
    usual_stages,
    with_settings,
)
from replk_jax.torch_import.names import renamed, replace_all
from replk_jax.torch_import.other_detectors import identify
from replk_jax.torch_import.shapes import Shapes
from replk_jax.vision.base_preprocessing import BasePreprocessing

NETWORK = DetectionNetwork
PUBLISHED = PRETRAINED_DETECTORS
MODULES = ("neck", "rpn_head", "bbox_head", "roi_head", "mask_head")
KEYS = re.compile(r"(?:bbox|roi|rpn)_head\.")
ORDER = (
    "neck rpn_head roi_head bbox_head mask_head lateral_convs fpn_convs rpn_conv rpn_cls rpn_reg "
    "fc_cls fc_reg shared_convs shared_fcs cls_convs reg_convs conv_cls conv_reg conv_centerness "
    "scales convs upsample conv_logits conv gn bn weight bias running_mean running_var "
    "num_batches_tracked scale"
)

# The modules of each kind of network; a number stands for any number.
_MODULES = {
    SingleStageDetector: re.compile(
        r"neck\.(?:lateral|fpn)_convs\.\d+\.conv"
        r"|bbox_head\.(?:(?:cls|reg)_convs\.\d+\.(?:conv|gn)|conv_(?:cls|reg|centerness)"
        r"|scales\.\d+)"
    ),
    TwoStageDetector: re.compile(
        r"neck\.(?:lateral|fpn)_convs\.\d+\.conv|rpn_head\.rpn_(?:conv|cls|reg)"
        r"|roi_head\.bbox_head\.(?:\d+\.)?(?:shared_convs\.\d+\.(?:conv|bn)|shared_fcs\.\d+"
        r"|fc_cls|fc_reg)"
        r"|roi_head\.mask_head\.(?:\d+\.)?(?:convs\.\d+\.conv|upsample|conv_logits)"
    ),
}
_SUPPORTED = (
    "Supported are FCOS, and Faster, Mask and Cascade R-CNN, with an FPN and heads as in "
    "RepLKNet's configurations or mmdetection's own. The backbone alone is loaded with "
    'prefix="backbone." (--prefix).'
)
# The fields of parts that change no shape, without those that only training needs.
_UNRECORDED: dict[type[NetworkPart], tuple[str, ...]] = {
    FCOSHead: (
        "num_groups", "norm_on_bbox", "centerness_on_reg", "candidates_per_level",
        "score_threshold", "nms_threshold", "max_detections",
    ),
    RPNHead: (
        "anchor_scale", "anchor_ratios", "test_pre_nms", "test_post_nms", "nms_threshold",
    ),
    RoIHead: ("sampling_ratio", "score_threshold", "nms_threshold", "max_detections"),
}  # fmt: skip
_EARLY_NAMES = ((r"^bbox_head\.fcos_(cls|reg|centerness)\.", r"bbox_head.conv_\1."),)
_NUM_ROI_LEVELS = 4


# --- Names -------------------------------------------------------------------------------


def official_names(heads: Mapping[str, Any]) -> dict[str, Any]:
    """See `composites.Composite`. Those of FCOS in mmdetection 1 become those of later versions.

    Raises:
      ValueError: heads that are not supported.
    """
    if label := identify(heads):
        raise ValueError(f"it has {label}, which is not supported. {_SUPPORTED}")
    named = renamed(heads, lambda name: replace_all(name, _EARLY_NAMES))
    known = _MODULES[_kind(named)]
    surplus = [name for name in named if not known.fullmatch(name.rpartition(".")[0])]
    if surplus:
        raise ValueError(f"it has tensors of no supported detector, {brief(surplus)}. {_SUPPORTED}")
    return named


def official_key(key: str) -> str:
    """See `composites.Composite`. FCOS's factors are no weights of a norm."""
    return re.sub(r"^(bbox_head\.scales\.\d+)\.weight$", r"\1.scale", key)


def _kind(heads: Mapping[str, Any]) -> type[DetectionNetwork]:
    """The class of the network, by names.

    Raises:
      ValueError: heads of both kinds.
    """
    first = {
        start: next((name for name in heads if name.startswith(f"{start}.")), None)
        for start in ("bbox_head", "roi_head")
    }
    if first["bbox_head"] and first["roi_head"]:
        raise ValueError(
            f"it mixes tensors of a single-stage and a two-stage detector: {first['bbox_head']} "
            f"and {first['roi_head']}."
        )
    return SingleStageDetector if first["bbox_head"] else TwoStageDetector


# --- Shapes ------------------------------------------------------------------------------


def num_classes(heads: Mapping[str, Any]) -> int | None:
    """See `composites.Composite`."""
    # The classifiers of boxes have an output for the background, too.
    for pattern, others in ((r"bbox_head\.conv_cls\.weight", 0), (_of_stage("fc_cls.weight"), 1)):
        for name, value in heads.items():
            if re.fullmatch(pattern, name) and value.shape:
                return value.shape[0] - others
    return None


def infer_model(
    heads: Mapping[str, Any], backbone: Backbone, settings: Mapping[str, Any]
) -> DetectionNetwork:
    """See `composites.Composite`.

    The neck sees, of the usual feature maps of the backbone (`usual_stages`), the last ones, unless
    their widths do not fit.
    """
    kind = _kind(heads)
    shapes = Shapes(heads, kind.__name__)
    neck, indices = _infer_neck(shapes, backbone, settings.get("neck", {}))
    indices = settings.get("out_indices") or indices
    backbone = with_settings(backbone, indices, settings)
    common = {"backbone": backbone, "deploy": backbone.deploy}
    if kind is SingleStageDetector:
        head = _infer_fcos(shapes, settings.get("bbox_head", {}))
        if not neck.extra_convs:
            neck = neck.clone(num_outputs=_count(shapes, r"bbox_head\.scales\.(\d+)\."))
        network = SingleStageDetector(
            **common, neck=neck, bbox_head=head, num_classes=num_classes(heads)
        )
    else:
        roi_head = _infer_roi_head(shapes, settings)
        rpn_head = _infer_rpn_head(shapes, settings.get("rpn_head", {}))
        network = TwoStageDetector(
            **common,
            neck=neck,
            rpn_head=rpn_head,
            roi_head=roi_head,
            num_classes=num_classes(heads),
        )
    _check_strides(network, settings)
    return network


def _infer_neck(
    shapes: Shapes, backbone: Backbone, settings: Mapping[str, Any]
) -> tuple[FPN, tuple[int, ...]]:
    """The neck, and the stages of the backbone whose feature maps it is given."""
    count = _count(shapes, r"neck\.lateral_convs\.(\d+)\.")
    wanted = [shapes.kernel(f"neck.lateral_convs.{i}.conv.weight")[1] for i in range(max(1, count))]
    channels = shapes.kernel("neck.lateral_convs.0.conv.weight")[0]
    stages = usual_stages(backbone)
    widths = [backbone.stage_channels[stage] for stage in stages]
    if widths[-count:] != wanted:
        stages = stages_of_widths(backbone, wanted, "neck")
    convs = _count(shapes, r"neck\.fpn_convs\.(\d+)\.")
    if convs > count:
        width = shapes.kernel(f"neck.fpn_convs.{count}.conv.weight")[1]
        if width != channels:
            raise ValueError(
                f"neck.fpn_convs.{count}, of an additional level of its FPN, sees {width} channels "
                f"and not the {channels} of the level before: add_extra_convs other than "
                "'on_output' is not supported"
            )
    fields: dict[str, Any] = {
        "num_outputs": max(5, count + 1),
        **settings,
        "channels": channels,
        "start_level": len(stages) - count,
        "extra_convs": convs > count,
    }
    if convs > count:
        fields["num_outputs"] = convs
        fields.setdefault("relu_before_extra_convs", True)
    return FPN(**fields), stages


def _infer_fcos(shapes: Shapes, settings: Mapping[str, Any]) -> FCOSHead:
    channels = shapes.kernel("bbox_head.conv_cls.weight")[1]
    groups = settings.get("num_groups", FCOSHead.num_groups)
    if channels % groups:
        raise ValueError(
            f"its bbox_head has {channels} channels, which do not make {groups} groups of a group "
            "norm: pass a model with the num_groups."
        )
    count = _count(shapes, r"bbox_head\.cls_convs\.(\d+)\.")
    return FCOSHead(**settings, channels=channels, num_convs=count)


def _infer_rpn_head(shapes: Shapes, settings: Mapping[str, Any]) -> RPNHead:
    anchors = shapes.kernel("rpn_head.rpn_reg.weight")[0] // 4
    head = RPNHead(**settings, channels=shapes.kernel("rpn_head.rpn_conv.weight")[0])
    if len(head.anchor_ratios) != anchors:
        what = "those of its configuration" if "anchor_ratios" in settings else "the usual ones"
        raise ValueError(
            f"its rpn_head has {anchors} anchors per position, and {what} have "
            f"{len(head.anchor_ratios)} ratios: pass a model with the anchor_ratios."
        )
    return head


def _infer_roi_head(shapes: Shapes, settings: Mapping[str, Any]) -> RoIHead:
    stages = _count(shapes, r"roi_head\.bbox_head\.(\d+)\.")
    head = CascadeRoIHead if stages else StandardRoIHead
    if stages and stages != len(head.stages):
        raise ValueError(
            f"its roi_head has {stages} stages, and only {len(head.stages)} are supported. "
            f"{_SUPPORTED}"
        )
    for found, stage in zip(settings.get("stds", ()), head.stages, strict=False):
        if tuple(found) != stage.stds:
            raise ValueError(
                f"target_stds={found} of a stage of its configuration cannot be represented, only "
                f"{stage.stds}"
            )
    first = "0." if stages else ""
    box, mask = f"roi_head.bbox_head.{first}", f"roi_head.mask_head.{first}"
    fields = dict(settings.get("roi_head", {}))
    fields |= _infer_box_head(shapes, box)
    if shapes.any(mask):
        fields |= {
            "masks": True,
            "mask_convs": _count(shapes, rf"{re.escape(mask)}convs\.(\d+)\."),
            "mask_channels": shapes.kernel(f"{mask}conv_logits.weight")[1],
        }
        classes = shapes.kernel(f"{mask}conv_logits.weight")[0]
        if classes != num_classes(shapes.weights):
            raise ValueError(f"masks that all classes share ({mask}conv_logits) are not supported")
    else:
        fields["masks"] = False
    return head(**fields)


def _infer_box_head(shapes: Shapes, start: str) -> dict[str, Any]:
    """The fields of a box head, whose features are s x s for a linear layer of s x s x channels."""
    convs = _count(shapes, rf"{re.escape(start)}shared_convs\.(\d+)\.")
    linear = _count(shapes, rf"{re.escape(start)}shared_fcs\.(\d+)\.")
    if not linear:
        raise ValueError(f"{start}shared_fcs is missing. {_SUPPORTED}")
    width, inputs = shapes.kernel(f"{start}shared_fcs.0.weight", 2)
    last = f"{start}shared_convs.{convs - 1}.conv.weight"
    channels = shapes.kernel(last if convs else "neck.fpn_convs.0.conv.weight")[0]
    side = round((inputs / channels) ** 0.5)
    if side * side * channels != inputs:
        raise ValueError(
            f"{start}shared_fcs.0.weight has {inputs} inputs, which are no square of positions of "
            f"{channels} channels"
        )
    outputs = shapes.kernel(f"{start}fc_reg.weight", 2)[0]
    fields: dict[str, Any] = {
        "box_size": side,
        "box_convs": convs,
        "box_fcs": linear,
        "box_fc_channels": width,
        "class_agnostic": outputs == 4 and num_classes(shapes.weights) != 1,
    }
    return fields | ({"box_conv_channels": channels} if convs else {})


def _of_stage(name: str) -> str:
    """A pattern of a tensor of the box head of any stage."""
    return rf"roi_head\.bbox_head\.(?:\d+\.)?{re.escape(name)}"


def _count(shapes: Shapes, part: str) -> int:
    return len({match[1] for match in map(re.compile(part).match, shapes.weights) if match})


def _check_strides(network: DetectionNetwork, settings: Mapping[str, Any]) -> None:
    """Raises ValueError if a configuration has other strides than the pyramid of a network."""
    found = network.pyramid_strides
    for name, expected in (("strides", found), ("roi_strides", found[:_NUM_ROI_LEVELS])):
        given = settings.get(name, expected)
        if tuple(given) != expected:
            raise ValueError(
                f"its configuration has heads with strides of {joined(given)}, and the levels of "
                f"its pyramid have {joined(expected)}"
            )


# --- What names and shapes do not determine ------------------------------------------------


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """See `composites.Composite`."""
    return mm_detection.read_settings(config)


def read_preprocessing(config: Mapping[str, Any]) -> BasePreprocessing | None:
    """See `composites.Composite`."""
    return mm_detection.detection_protocol(config)


def assumed(model: DetectionNetwork, settings: Mapping[str, Any]) -> str:
    """See `composites.Composite`."""
    of_neck = "relu_before_extra_convs" if model.neck.extra_convs else "num_outputs"
    facts = _facts("neck", model.neck, (of_neck,), settings)
    for name, kind in (("bbox_head", FCOSHead), ("rpn_head", RPNHead), ("roi_head", RoIHead)):
        if part := getattr(model, name, None):
            facts += _facts(name, part, _UNRECORDED[kind], settings)
    if isinstance(model, TwoStageDetector) and "stds" not in settings:
        facts.append(f"target_stds={[stage.stds for stage in model.roi_head.stages]}")
    if "output_stride" not in settings:
        facts.append(f"an output stride of {model.backbone.stage_strides[-1]}")
    return "; ".join(facts)


def _facts(
    name: str, part: NetworkPart, fields: Sequence[str], settings: Mapping[str, Any]
) -> list[str]:
    """The fields of a part that the settings lack, in words; empty without any."""
    lacking = [field for field in fields if field not in settings.get(name, {})]
    values = ", ".join(f"{field}={joined(getattr(part, field))}" for field in lacking)
    return [f"{name} with {values}"] if values else []


def expect_published(model: DetectionNetwork, merged: bool) -> None:
    """See `composites.Composite`."""
    if model.deploy:
        raise ValueError(
            "mmdetection has no heads without batch norms: save the training-time variables "
            "(deploy=False), with merged=True if need be."
        )
