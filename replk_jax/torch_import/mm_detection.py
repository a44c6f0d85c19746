"""Reads configurations of mmdetection: settings of the network, and the preprocessing of images."""

from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.detection.pasting import THRESHOLD as MASK_THRESHOLD
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.torch_import.config_fields import (
    flag,
    mapping,
    number,
    unexpected,
    whole_number,
    whole_numbers,
)
from replk_jax.torch_import.mm_backbone import read_backbone
from replk_jax.torch_import.mm_config import type_name
from replk_jax.torch_import.mm_keep_ratio import read_test_pipeline

Settings = dict[str, Any]


def read_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a detector that its weights do not record.

    Args:
      config: the result of `parse_config`.

    Returns:
      Fields of the parts that the configuration determines: `neck`, and `bbox_head` of FCOS or
      `rpn_head` and `roi_head`; `strides` of the levels of the pyramid, and `roi_strides` of those
      that RoIs use; `stds` of the offsets of each stage; and the settings of `read_backbone`. Empty
      without a configuration of a detector.

    Raises:
      ValueError: settings of other types, or that a network of this package cannot have.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        return {}
    test = _test_settings(config, model)
    if isinstance(model.get("roi_head"), Mapping):
        settings = _two_stage(model, test)
    elif isinstance(model.get("bbox_head"), Mapping):
        settings = _fcos(mapping(model, "bbox_head"), test)
    else:
        return {}
    if isinstance(model.get("neck"), Mapping):
        settings["neck"] = _neck(mapping(model, "neck"))
    return settings | read_backbone(model)


def _test_settings(config: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any]:
    """`test_cfg`, which early versions have beside the model."""
    for fields in (model, config):
        if isinstance(fields.get("test_cfg"), Mapping):
            return mapping(fields, "test_cfg")
    return {}


def _neck(neck: Mapping[str, Any]) -> Settings:
    if type_name(neck) != "FPN":
        raise unexpected("the type of the neck", type_name(neck), "FPN")
    settings: Settings = {}
    if "num_outs" in neck:
        settings["num_outputs"] = whole_number(neck, "num_outs")
    _expect(neck, end_level=-1)
    if neck.get("act_cfg") is not None:
        raise unexpected("act_cfg of the neck", neck["act_cfg"], "None")
    if isinstance(neck.get("upsample_cfg"), Mapping):
        _expect(mapping(neck, "upsample_cfg"), mode="nearest")
    extra = neck.get("add_extra_convs", False)
    if extra not in (False, "on_output"):
        # True, too, is "on_input", the last feature map of the backbone.
        raise unexpected("add_extra_convs", extra, "False or 'on_output'")
    if extra:
        settings["relu_before_extra_convs"] = flag(neck, "relu_before_extra_convs")
    return settings


# --- FCOS --------------------------------------------------------------------------------


def _fcos(head: Mapping[str, Any], test: Mapping[str, Any]) -> Settings:
    if type_name(head) != "FCOSHead":
        raise unexpected("the type of bbox_head", type_name(head), "FCOSHead")
    fields: Settings = {
        name: flag(head, name) for name in ("norm_on_bbox", "center_sampling", "centerness_on_reg")
    }
    if head.get("center_sample_radius") is not None:
        fields["center_radius"] = float(number(head, "center_sample_radius"))
    if head.get("regress_ranges") is not None:
        fields["regression_limits"] = _limits(head["regress_ranges"])
    norm = head.get("norm_cfg")
    if isinstance(norm, Mapping) and type_name(norm) == "GN":
        fields["num_groups"] = whole_number(norm, "num_groups")
    settings: Settings = {"bbox_head": fields | _detections(test, "nms_pre")}
    if head.get("strides") is not None:
        settings["strides"] = whole_numbers(head, "strides")
    return settings


def _limits(ranges: Any) -> tuple[float, ...]:
    """The bounds between the ranges of the distances of neighbouring levels."""
    try:
        low, high = zip(*ranges, strict=True)
    except (TypeError, ValueError):
        low, high = (), (None,)
    if low[1:] != high[:-1] or not low or low[0] > 0:
        raise unexpected("regress_ranges", ranges, "a range for each level, without gaps")
    return tuple(float(number({"regress_ranges": bound}, "regress_ranges")) for bound in low[1:])


def _detections(test: Mapping[str, Any], candidates: str | None = None) -> Settings:
    """The settings of the last NMS.

    Args:
      test: settings of the test.
      candidates: name of the number of candidates per level; None for a head without it.
    """
    settings: Settings = {}
    if candidates and test.get(candidates) is not None:
        settings["candidates_per_level"] = whole_number(test, candidates)
    if test.get("score_thr") is not None:
        settings["score_threshold"] = number(test, "score_thr")
    if test.get("max_per_img") is not None:
        settings["max_detections"] = whole_number(test, "max_per_img")
    if test.get("min_bbox_size", 0) > 0:
        raise unexpected("min_bbox_size", test["min_bbox_size"], "0")
    return settings | _nms(test)


def _nms(test: Mapping[str, Any]) -> Settings:
    nms = test.get("nms")
    if not isinstance(nms, Mapping):
        return {}
    if nms.get("type", "nms") != "nms":
        raise unexpected("the type of nms", nms["type"], "nms")
    _expect(nms, class_agnostic=False, offset=0)
    name = "iou_threshold" if "iou_threshold" in nms else "iou_thr"
    return {"nms_threshold": number(nms, name)}


# --- Two stages --------------------------------------------------------------------------


def _two_stage(model: Mapping[str, Any], test: Mapping[str, Any]) -> Settings:
    settings: Settings = {}
    rpn_fields: Settings = {}
    if isinstance(model.get("rpn_head"), Mapping):
        anchors, settings = _anchors(mapping(model, "rpn_head"))
        rpn_fields |= anchors
    if isinstance(test.get("rpn"), Mapping):
        rpn_fields |= _proposals(mapping(test, "rpn"))
    head = mapping(model, "roi_head")
    fields: Settings = {}
    if isinstance(test.get("rcnn"), Mapping):
        fields |= _detections(mapping(test, "rcnn"))
        _expect(mapping(test, "rcnn"), mask_thr_binary=MASK_THRESHOLD)
    if isinstance(head.get("bbox_roi_extractor"), Mapping):
        extractor = mapping(head, "bbox_roi_extractor")
        fields |= _roi_align(extractor)
        if extractor.get("featmap_strides") is not None:
            settings["roi_strides"] = whole_numbers(extractor, "featmap_strides")
    if isinstance(head.get("mask_roi_extractor"), Mapping):
        extractor = mapping(head, "mask_roi_extractor")
        if _roi_align(extractor) != {"sampling_ratio": fields.get("sampling_ratio", 0)}:
            raise ValueError("sampling_ratio of boxes and masks differ")
        layer = mapping(extractor, "roi_layer")
        if layer.get("output_size") is not None:
            fields["mask_size"] = whole_number(layer, "output_size")
    if stds := [_stds(each) for each in _several(head.get("bbox_head"))]:
        settings["stds"] = stds
    return settings | {"rpn_head": rpn_fields, "roi_head": fields}


def _anchors(head: Mapping[str, Any]) -> tuple[Settings, Settings]:
    """Fields of the RPN, and other settings."""
    if type_name(head) != "RPNHead":
        raise unexpected("the type of rpn_head", type_name(head), "RPNHead")
    if isinstance(head.get("bbox_coder"), Mapping) and _stds(head) != (1.0,) * 4:
        raise unexpected("target_stds of rpn_head", _stds(head), "all 1")
    generator = head.get("anchor_generator")
    if not isinstance(generator, Mapping):
        return {}, {}
    _expect_type(generator, "anchor_generator", "AnchorGenerator")
    _expect(generator, center_offset=0, scale_major=True, base_sizes=generator.get("strides"))
    fields: Settings = {}
    if generator.get("scales") is not None:
        scales = generator["scales"]
        if not isinstance(scales, list | tuple) or len(scales) != 1:
            raise unexpected("scales", scales, "one number")
        fields["anchor_scale"] = float(number({"scales": scales[0]}, "scales"))
    if generator.get("ratios") is not None:
        fields["anchor_ratios"] = tuple(_numbers(generator, "ratios"))
    strides = {}
    if generator.get("strides") is not None:
        strides["strides"] = whole_numbers(generator, "strides")
    return fields, strides


def _proposals(test: Mapping[str, Any]) -> Settings:
    """The numbers of boxes and the NMS of the RPN; versions before 2.6 use other names."""
    settings: Settings = {}
    if test.get("nms_pre") is not None:
        settings["test_pre_nms"] = whole_number(test, "nms_pre")
    for name in ("max_per_img", "max_num"):
        if test.get(name) is not None:
            settings["test_post_nms"] = whole_number(test, name)
            break
    if test.get("nms_thr") is not None:
        settings["nms_threshold"] = number(test, "nms_thr")
    if flag(test, "nms_across_levels"):
        raise unexpected("nms_across_levels", True, "False")
    if test.get("min_bbox_size", 0) > 0:
        raise unexpected("min_bbox_size", test["min_bbox_size"], "0")
    return settings | _nms(test)


def _roi_align(extractor: Mapping[str, Any]) -> Settings:
    _expect(extractor, finest_scale=56)
    layer = mapping(extractor, "roi_layer")
    if type_name(layer) != "RoIAlign":
        raise unexpected("the type of roi_layer", type_name(layer), "RoIAlign")
    if not flag(layer, "aligned", True):
        raise unexpected("aligned", False, "True")
    ratio = layer.get("sampling_ratio", 0)
    if type(ratio) is not int or ratio < 0:
        raise unexpected("sampling_ratio", ratio, "a whole number")
    return {"sampling_ratio": ratio}


def _stds(head: Mapping[str, Any]) -> tuple[float, ...]:
    """The standard deviations of the offsets of a head; their means are 0."""
    coder = mapping(head, "bbox_coder")
    _expect_type(coder, "bbox_coder", "DeltaXYWHBBoxCoder")
    _expect(coder, clip_border=True, add_ctr_clamp=False)
    means = coder.get("target_means", (0.0,) * 4)
    if any(means):
        raise unexpected("target_means", means, "all 0")
    return tuple(_numbers({"target_stds": (1.0,) * 4, **coder}, "target_stds"))


def _expect_type(fields: Mapping[str, Any], name: str, wanted: str) -> None:
    """Raises ValueError if the class that fields are of is given, and is another one."""
    if "type" in fields and type_name(fields) != wanted:
        raise unexpected(f"the type of {name}", type_name(fields), wanted)


def _expect(fields: Mapping[str, Any], **wanted: Any) -> None:
    """Raises ValueError for a field that is given, and has another value than the supported one."""
    for name, value in wanted.items():
        found = fields.get(name)
        if found is not None and found != value:
            raise unexpected(name, found, repr(value))


def _several(heads: Any) -> Sequence[Mapping[str, Any]]:
    """The heads of the stages that have settings of their own."""
    heads = heads if isinstance(heads, list | tuple) else [heads]
    return [
        head
        for head in heads
        if isinstance(head, Mapping) and isinstance(head.get("bbox_coder"), Mapping)
    ]


def _numbers(fields: Mapping[str, Any], name: str) -> list[float]:
    values = fields[name]
    if not isinstance(values, list | tuple):
        raise unexpected(name, values, "a list of numbers")
    return [float(number({name: value}, name)) for value in values]


# --- The preprocessing -------------------------------------------------------------------


def detection_protocol(config: Mapping[str, Any]) -> DetectionProtocol | None:
    """The test pipeline of a configuration; None without one.

    Raises:
      ValueError: a pipeline that `DetectionProtocol` cannot represent.
    """
    pipeline = read_test_pipeline(config)
    if pipeline is None:
        return None
    if flag(pipeline.views, "flip"):
        raise ValueError("boxes of flipped images are not averaged here")
    if pipeline.padding and pipeline.padding.get("size_divisor") is None:
        raise ValueError("the step Pad has no size_divisor")
    return DetectionProtocol(
        limits=tuple(pipeline.fields["limits"]),
        multiple=pipeline.fields["multiple"],
        mean=tuple(pipeline.fields["mean"]),
        std=tuple(pipeline.fields["std"]),
        pad_multiple=_pad_multiple(config, pipeline.padding),
    )


def _pad_multiple(config: Mapping[str, Any], padding: Mapping[str, Any]) -> int:
    if padding:
        return whole_number(padding, "size_divisor")
    model = config.get("model")
    model = model if isinstance(model, Mapping) else {}
    preprocessor = model.get("data_preprocessor") or config.get("data_preprocessor")
    if not isinstance(preprocessor, Mapping) or "pad_size_divisor" not in preprocessor:
        return 1
    return whole_number(preprocessor, "pad_size_divisor")
