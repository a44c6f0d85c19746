"""Reads configurations of mmengine and mmcv: Python text in a checkpoint's `meta` entry."""

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from replk_jax.models.backbone import Backbone
from replk_jax.torch_import.config_fields import (
    class_labels,
    crop_fraction,
    mapping,
    unexpected,
    whole_number,
    whole_numbers,
)
from replk_jax.vision.preprocessing import Preprocessing

_LONGEST_CONFIG = 1 << 20  # characters
_GEOMETRIC = re.compile("Resize|Crop|Pad|Flip|Scale|Rotate|Aug")  # in types of pipeline steps
_NO_STEPS: Mapping[str, Any] = {}

# The backbones' default strides, which all have the same output stride.
_USUAL_OUTPUT_STRIDE = 32
USUAL_STRIDES = {
    "ResNet": (1, 2, 2, 2),
    "RepVGG": (2, 2, 2, 2),
    "RepLKNet": (2, 2, 2, 2),
    "MobileNetV2": (1, 2, 2, 2, 1, 2, 1),
}


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """Unusual settings of a backbone that no tensor records.

    Attributes:
      settings: as in the configuration, such as "style='caffe'".
      fields: equivalent fields of the model or its architecture, with their values.
    """

    settings: tuple[str, ...]
    fields: tuple[tuple[str, Any], ...]

    def difference(self, model: Backbone) -> str | None:
        """The fields and settings that a model lacks, in words; None if it has them all."""
        lacking = [f"{name}={value}" for name, value in self.fields if _of(model, name) != value]
        if self.fields and not lacking:
            return None
        settings = ", ".join(self.settings)
        return f"{', '.join(lacking)} ({settings})" if lacking else settings


def _of(model: Backbone, field: str) -> Any:
    return getattr(model, field) if hasattr(model, field) else getattr(model.architecture, field)


def parse_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the configuration in a `meta` entry; empty without one.

    Raises:
      ValueError: text that is too long or not Python.
    """
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        return {}
    if len(text) > _LONGEST_CONFIG:
        raise ValueError(f"it has more than {_LONGEST_CONFIG:,} characters")
    try:
        return _python_literals(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python text that can be read: {error}") from error


def mm_class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names in a `meta` entry; None without any.

    Raises:
      ValueError: something else than a list of names.
    """
    data_set = meta.get("dataset_meta")
    data_set = data_set if isinstance(data_set, Mapping) else {}
    names = data_set.get("classes") or data_set.get("CLASSES") or meta.get("CLASSES")
    # One name of mmsegmentation's ADE20K ends with a space.
    return tuple(str(n).strip() for n in class_labels(names, "classes")) if names else None


def mm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """The test pipeline of a configuration; None without one.

    Raises:
      ValueError: a pipeline that `Preprocessing` cannot represent.
    """
    resize, crop = _resize_and_crop(config)
    if not resize:
        return None
    mean, std = normalization(config)
    side, shorter_only = _resized_side(resize)
    if crop:
        image_size = _square(crop, "crop_size")
        if not shorter_only:
            raise ValueError(f"images are warped to {side} pixels and then cropped to {image_size}")
        fraction = crop_fraction(image_size, side)
    elif shorter_only:
        raise ValueError("images keep their aspect ratio and are not cropped to a square")
    else:
        image_size, fraction = side, None
    return Preprocessing(
        image_size,
        crop_fraction=fraction,
        interpolation=resize.get("interpolation", "bilinear"),
        mean=mean,
        std=std,
    )


def resizes_with_opencv(config: Mapping[str, Any]) -> bool:
    """Whether the test pipeline that `mm_preprocessing` reads resizes with OpenCV."""
    resize, _ = _resize_and_crop(config)
    return bool(resize) and resize.get("backend", "cv2") != "pillow"


def mm_backbone(config: Mapping[str, Any], family: str) -> BackboneSettings | None:
    """Unusual strides and dilation of the backbone; None if there are none.

    Args:
      config: the result of `parse_config`.
      family: name of the network's class, the same as in mmpretrain.

    Raises:
      ValueError: settings that are not lists of whole numbers.
    """
    model = config.get("model")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if not isinstance(backbone, Mapping) or type_name(backbone) != family:
        return None
    usual = USUAL_STRIDES[family]
    strides = whole_numbers(backbone, "strides") if backbone.get("strides") else usual
    dilations = whole_numbers(backbone, "dilations") if backbone.get("dilations") else (1,)
    settings, fields = [], []
    if strides != usual[: len(strides)]:
        settings.append(f"strides={strides}")
        fields += output_stride(strides, usual)
    if set(dilations) != {1}:
        settings.append(f"dilations={dilations}")
    if strides_in_1x1(backbone):
        settings.append("style='caffe'")
        fields.append(("stride_in_1x1", True))
    if set(dilations) != {1}:
        contracted = bool(backbone.get("contract_dilation"))
        if dilates_otherwise(backbone):
            settings.append(
                f"contract_dilation={contracted}, with which the first block of a dilated stage "
                "differs from the one here"
            )
        elif not strides_in_1x1(backbone):
            fields.append(("contract_dilation", contracted))
    return BackboneSettings(tuple(settings), tuple(fields)) if settings else None


def strides_in_1x1(backbone: Mapping[str, Any]) -> bool:
    """Whether the first 1 x 1 convolution of a bottleneck block has the stride."""
    return _has_bottlenecks(backbone) and backbone.get("style") == "caffe"


def dilates_otherwise(backbone: Mapping[str, Any]) -> bool:
    """Whether no model has the first block of a dilated stage.

    In a basic block only the first convolution is dilated there, and both are here. For bottleneck
    blocks see `resnet.Bottleneck` with `stride_in_1x1`.
    """
    if type_name(backbone) != "ResNet":
        return False
    contracted = bool(backbone.get("contract_dilation"))
    return not _has_bottlenecks(backbone) or (contracted and strides_in_1x1(backbone))


def _has_bottlenecks(backbone: Mapping[str, Any]) -> bool:
    return type_name(backbone) == "ResNet" and backbone.get("depth") not in (18, 34)


def output_stride(strides: tuple[int, ...], usual: tuple[int, ...]) -> list[tuple[str, int]]:
    """The field `output_stride`, if the product of the strides is smaller than usual."""
    usual_product, product = math.prod(usual[: len(strides)]), math.prod(strides)
    if product >= usual_product:
        return []
    of_all_stages = math.prod(usual)
    return [("output_stride", _USUAL_OUTPUT_STRIDE * product // of_all_stages)]


# --- The test pipeline -------------------------------------------------------------------


def _resize_and_crop(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The resizing and cropping steps; empty if missing.

    Raises:
      ValueError: a pipeline of other steps.
    """
    steps = [step for step in test_pipeline(config) if _GEOMETRIC.search(type_name(step))]
    match [type_name(step) for step in steps]:
        case []:
            return _NO_STEPS, _NO_STEPS
        case ["Resize" | "ResizeEdge"]:
            return steps[0], _NO_STEPS
        case ["Resize" | "ResizeEdge", "CenterCrop"]:
            if steps[1].get("efficientnet_style"):
                raise ValueError("CenterCrop(efficientnet_style=True) cannot be represented")
            return steps[0], steps[1]
        case types:
            raise ValueError(f"the steps {', '.join(types)} cannot be represented")


def test_pipeline(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps of the test pipeline, those inside another one after it; empty without any."""
    steps = config.get("test_pipeline")
    if steps is None:
        data = config.get("data")
        loader = config.get("test_dataloader") or (data.get("test") if data else None) or {}
        steps = loader.get("dataset", loader).get("pipeline")
    outer = [step for step in steps or () if isinstance(step, Mapping)]
    return [
        step
        for each in outer
        for step in (each, *(each.get("transforms") or ()))
        if isinstance(step, Mapping)
    ]


def type_name(settings: Mapping[str, Any]) -> str:
    """The name of a class without its scope: "ResizeEdge" for "mmpretrain.ResizeEdge"."""
    return str(settings.get("type")).rpartition(".")[2]


def _resized_side(resize: Mapping[str, Any]) -> tuple[int, bool]:
    """A side in pixels, and whether it is only that of the shorter side."""
    name = "size" if resize.get("scale") is None else "scale"
    size = resize.get(name)
    if type_name(resize) == "ResizeEdge":
        return whole_number(resize, name), _is_short(resize, "edge")
    if isinstance(size, list | tuple) and len(size) == 2 and size[1] == -1:
        return whole_number({name: size[0]}, name), _is_short(resize, "adaptive_side")
    side = _square(resize, name)
    if resize.get("keep_ratio"):
        raise ValueError(f"images keep their aspect ratio within {side} x {side} (keep_ratio=True)")
    return side, False


def _is_short(resize: Mapping[str, Any], name: str) -> bool:
    if resize.get(name, "short") != "short":
        raise unexpected(name, resize[name], "'short'")
    return True


def _square(step: Mapping[str, Any], name: str) -> int:
    """The side of a square in pixels."""
    size = step.get(name)
    if not isinstance(size, list | tuple):
        return whole_number(step, name)
    sides = whole_numbers(step, name)
    if len(sides) != 2 or sides[0] != sides[1]:
        shape = " x ".join(map(str, sides))
        raise ValueError(f"the images are {shape}, and only squares are supported")
    return sides[0]


def normalization(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for values in [0, 1]; the configuration has them for [0, 255].

    Raises:
      ValueError: missing, or channels in the order blue, green, red.
    """
    step = next((s for s in test_pipeline(config) if type_name(s) == "Normalize"), {})
    model = mapping(config, "model") if config.get("model") else {}
    found = model.get("data_preprocessor") or config.get("data_preprocessor") or step
    if not isinstance(found, Mapping) or not found.get("mean") or not found.get("std"):
        raise ValueError("it has no mean and std")
    # The step converts by default, the data preprocessors do not.
    if not found.get("to_rgb", found.get("bgr_to_rgb", found is step)):
        raise ValueError("the network takes channels in the order blue, green, red")
    return _fractions(found, "mean"), _fractions(found, "std")


def _fractions(fields: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = fields[name]
    if not isinstance(values, list | tuple) or any(type(v) not in (int, float) for v in values):
        raise unexpected(name, values, "a list of numbers")
    # To 12 digits, so that 57.12 / 255 is 0.224.
    return tuple(round(value / 255, 12) for value in values)


# --- Python text -------------------------------------------------------------------------


def _python_literals(text: str) -> dict[str, Any]:
    """The variables that Python text defines by literals and `dict(...)`, without running it."""
    values: dict[str, Any] = {}
    for statement in ast.parse(text, "configuration").body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _literal(value, values)
    return values


def _literal(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """The value of a literal, or the name of a class; None for other expressions."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values.get(name, name)
        case ast.Attribute():
            return ast.unparse(node)
        case ast.List(elts=items):
            return [_literal(item, values) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_literal(item, values) for item in items)
        case ast.Dict(keys=keys, values=entries):
            pairs = zip(keys, entries, strict=True)
            return {_literal(k, values): _literal(v, values) for k, v in pairs if k is not None}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {k.arg: _literal(k.value, values) for k in keywords if k.arg is not None}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None
