"""Reads configurations of mmsegmentation: settings of the network, and the test protocol."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.torch_import.config_fields import mapping, unexpected, whole_number, whole_numbers
from replk_jax.torch_import.mm_config import (
    USUAL_STRIDES,
    dilates_otherwise,
    normalization,
    output_stride,
    strides_in_1x1,
    test_pipeline,
    type_name,
)
from replk_jax.vision.base_preprocessing import BasePreprocessing

_HEADS = ("decode_head", "auxiliary_head")
# Steps of a test pipeline that do not change the size of the image.
_OTHER_STEPS = (
    "LoadImageFromFile", "LoadAnnotations", "RandomFlip", "Normalize", "ImageToTensor",
    "DefaultFormatBundle", "Collect", "PackSegInputs", "ToTensor",
)  # fmt: skip


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a segmenter that its weights do not record.

    Args:
      config: the result of `parse_config`.

    Returns:
      Those of `align_corners`, `pool_scales`, `dilations`, `out_indices`, `output_stride`,
      `contract_dilation`, `stride_in_1x1`, `decode_in_index` and `auxiliary_in_index` that the
      configuration determines; empty without a configuration of a segmenter.

    Raises:
      ValueError: settings of other types, or that a network of this package cannot have.
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("decode_head"), Mapping):
        return {}
    head = mapping(model, "decode_head")
    auxiliary = model.get("auxiliary_head")
    settings: dict[str, Any] = {"align_corners": _flag(head, "align_corners")}
    if isinstance(auxiliary, Mapping):
        if _flag(auxiliary, "align_corners") != settings["align_corners"]:
            raise ValueError("align_corners of the two heads differ")
        settings |= _index(auxiliary, "auxiliary_in_index")
    settings |= _index(head, "decode_in_index")
    # The defaults of mmsegmentation.
    settings["pool_scales"] = _numbers(head, "pool_scales", (1, 2, 3, 6))
    settings["dilations"] = _numbers(head, "dilations", (1, 6, 12, 18))
    if isinstance(model.get("backbone"), Mapping):
        settings |= _of_backbone(mapping(model, "backbone"))
    return settings


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise unexpected(name, value, "True or False")
    return value


def _numbers(fields: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return default if fields.get(name) is None else whole_numbers(fields, name)


def _index(head: Mapping[str, Any], name: str) -> dict[str, int]:
    """The feature map that a head sees, if it is one."""
    value = head.get("in_index")
    return {name: value} if type(value) is int else {}


def _of_backbone(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The stages and the dilation of a backbone."""
    settings: dict[str, Any] = {}
    indices = backbone.get("out_indices")
    if isinstance(indices, list | tuple) and all(type(i) is int and i >= 0 for i in indices):
        settings["out_indices"] = tuple(sorted(set(indices)))  # the order of its feature maps
    kind = type_name(backbone)
    if kind not in USUAL_STRIDES:
        return settings
    usual = USUAL_STRIDES[kind]
    strides = _numbers(backbone, "strides", usual)
    dilations = _numbers(backbone, "dilations", (1,) * len(strides))
    replaced = [dilation for dilation, ours in zip(strides, usual, strict=False) if dilation > ours]
    if len(strides) != len(usual) or replaced:
        raise ValueError(f"strides={strides} of a {kind} cannot be represented")
    if dilations != _dilations(strides, usual):
        raise ValueError(f"strides={strides} with dilations={dilations} cannot be represented")
    settings["output_stride"] = dict(output_stride(strides, usual)).get("output_stride")
    if strides_in_1x1(backbone):
        settings["stride_in_1x1"] = True
    if set(dilations) != {1}:
        if dilates_otherwise(backbone):
            raise ValueError(f"dilations={dilations} of such a {kind} cannot be represented")
        settings["contract_dilation"] = _flag(backbone, "contract_dilation")
    return settings


def _dilations(strides: Sequence[int], usual: Sequence[int]) -> tuple[int, ...]:
    """The dilation of every stage that keeps the field of view of the usual strides."""
    return tuple(
        math.prod(usual[: s + 1]) // math.prod(strides[: s + 1]) for s in range(len(usual))
    )


# --- The test protocol -------------------------------------------------------------------


def segmentation_protocol(config: Mapping[str, Any]) -> BasePreprocessing | None:
    """The test pipeline and the test mode of a configuration; None without one.

    Raises:
      ValueError: a pipeline or a mode that `SegmentationProtocol` cannot represent.
    """
    steps = test_pipeline(config)
    resize: Mapping[str, Any] = {}
    views: Mapping[str, Any] = {}
    multiple = 1
    for step in steps:
        match type_name(step):
            case "MultiScaleFlipAug":
                views = step
            case "Resize":
                resize = step
            case "ResizeToMultiple":
                multiple = whole_number({"size_divisor": 32, **step}, "size_divisor")
            case kind if kind not in _OTHER_STEPS:
                raise ValueError(f"the step {kind} cannot be represented")
    limits = _limits(views, resize)
    if limits is None:
        return None
    if not resize.get("keep_ratio", bool(views)):
        raise ValueError("images are resized without keeping their aspect ratio")
    mean, std = normalization(config)
    return BasePreprocessing.from_dict(
        {
            "kind": "segmentation",
            "limits": list(limits),
            "multiple": multiple,
            "mean": list(mean),
            "std": list(std),
            "ratios": list(_ratios(views)),
            "flip": _flag(views, "flip"),
            **_windows(config),
        }
    )


def _limits(views: Mapping[str, Any], resize: Mapping[str, Any]) -> tuple[int, int] | None:
    """The (long, short) limits of the sides in pixels."""
    found = [
        (fields, name)
        for fields, name in ((views, "img_scale"), (resize, "img_scale"), (resize, "scale"))
        if fields.get(name) is not None
    ]
    if not found:
        return None
    limits = whole_numbers(*found[0])
    if len(limits) != 2:
        raise unexpected(found[0][1], limits, "two whole numbers")
    return max(limits), min(limits)


def _ratios(views: Mapping[str, Any]) -> tuple[float, ...]:
    ratios = views.get("img_ratios")
    if ratios is None:
        return (1.0,)
    ratios = ratios if isinstance(ratios, list | tuple) else [ratios]
    if not ratios or any(type(ratio) not in (int, float) or ratio <= 0 for ratio in ratios):
        raise unexpected("img_ratios", ratios, "positive numbers")
    return tuple(map(float, ratios))


def _windows(config: Mapping[str, Any]) -> dict[str, int | None]:
    """The side and the stride of the windows; None for whole images."""
    model = config.get("model")
    test = model.get("test_cfg") if isinstance(model, Mapping) else config.get("test_cfg")
    if not isinstance(test, Mapping) or test.get("mode", "whole") == "whole":
        return {"window": None, "stride": None}
    if test["mode"] != "slide":
        raise unexpected("mode", test["mode"], "'whole' or 'slide'")
    return {"window": _square(test, "crop_size"), "stride": _square(test, "stride")}


def _square(fields: Mapping[str, Any], name: str) -> int:
    sides = whole_numbers(fields, name)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise unexpected(name, sides, "two equal numbers")
    return sides[0]
