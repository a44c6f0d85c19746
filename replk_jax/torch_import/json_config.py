"""Reads preprocessing and class names from JSON files of timm and transformers."""

import math
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from replk_jax.torch_import.config_fields import (
    class_labels,
    crop_fraction,
    mapping,
    number,
    unexpected,
    whole_number,
    whole_numbers,
)
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD
from replk_jax.vision.preprocessing import Preprocessing

# Image processors of transformers that interpret an integer size as the shorter side. Others
# interpret it as both sides, or scale it.
_OF_SHORTER_SIDE = re.compile(
    r"(CLIP|ChineseCLIP|ConvNext|Bit|MobileNetV[12]|PoolFormer)(ImageProcessor|FeatureExtractor)"
)
_WITHOUT_EQUIVALENT = (
    "do_pad",
    "do_flip_channel_order",
    "do_thumbnail",
    "do_align_long_axis",
    "rescale_offset",
)
_WARPED_FROM = 384  # pixels; ConvNeXt's image processor crops smaller images only


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """The evaluation transform of a timm config.json; None if it is not one.

    Raises:
      ValueError: a transform that `Preprocessing` cannot represent.
    """
    if "architecture" not in config:
        return None
    # Before version 0.8 the fields were at the top level.
    fields = mapping(config, "pretrained_cfg") if "pretrained_cfg" in config else config
    if "input_size" not in fields:
        return None
    shape = whole_numbers(fields, "input_size")
    if len(shape) != 3:
        raise unexpected("input_size", shape, "channels, height and width")
    _, height, width = shape
    if height != width:
        raise ValueError(f"the images are {height} x {width}, and only squares are supported")
    fraction = number(fields, "crop_pct") if fields.get("crop_pct") is not None else 0.875
    return Preprocessing(
        height,
        crop_fraction=_timm_crop_fraction(fields.get("crop_mode") or "center", fraction),
        interpolation=fields.get("interpolation") or "bicubic",
        mean=fields.get("mean") or IMAGENET_MEAN,
        std=fields.get("std") or IMAGENET_STD,
    )


def _timm_crop_fraction(mode: Any, fraction: float) -> float | None:
    """As in `Preprocessing`: None for images that are warped."""
    if mode == "center":
        return fraction
    if mode == "squash" and fraction == 1:
        return None
    if mode == "squash":
        raise ValueError(f"images are warped and then cropped (crop_mode='squash', {fraction})")
    raise unexpected("crop_mode", mode, "'center' or 'squash'")


def timm_class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The descriptions of the labels in a timm config.json, or the labels; None without any.

    Raises:
      ValueError: labels that are no names by index.
    """
    fields = config.get("pretrained_cfg")
    fields = fields if isinstance(fields, Mapping) else {}
    labels = config.get("label_names") or fields.get("label_names")
    if labels is None or "architecture" not in config:
        return None
    descriptions = config.get("label_descriptions")
    descriptions = descriptions if isinstance(descriptions, Mapping) else {}
    names = map(str, class_labels(labels, "label_names"))
    return tuple(str(descriptions.get(name, name)) for name in names)


def transformers_class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names in a config.json of transformers; None without any.

    Raises:
      ValueError: an `id2label` that has no names by index.
    """
    labels = config.get("id2label")
    if not labels:
        return None
    names = tuple(map(str, class_labels(labels, "id2label")))
    # transformers writes these if it has no names.
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def transformers_preprocessing(fields: Mapping[str, Any]) -> Preprocessing | None:
    """The transform of a preprocessor_config.json; None if it is not of images.

    Raises:
      ValueError: a transform that `Preprocessing` cannot represent.
    """
    if "size" not in fields and "crop_size" not in fields:
        return None
    if not fields.get("do_resize", True):
        raise ValueError("images keep their size (do_resize is false)")
    factor = number(fields, "rescale_factor") if "rescale_factor" in fields else 1 / 255
    if not fields.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ValueError(
            "its pixels are not scaled to [0, 1] "
            f"(do_rescale {fields.get('do_rescale', True)}, rescale_factor {factor})"
        )
    if found := [name for name in _WITHOUT_EQUIVALENT if fields.get(name)]:
        raise ValueError(f"{', '.join(found)} cannot be represented")
    size, fraction = _transformers_size(fields)
    normalized = fields.get("do_normalize", True)
    return Preprocessing(
        size,
        crop_fraction=fraction,
        interpolation=_filter(fields.get("resample", 3)),
        mean=fields.get("image_mean", IMAGENET_MEAN) if normalized else (0.0,) * 3,
        std=fields.get("image_std", IMAGENET_STD) if normalized else (1.0,) * 3,
    )


def _transformers_size(fields: Mapping[str, Any]) -> tuple[int, float | None]:
    """Image size, and crop fraction or None for images that are warped."""
    processor = str(fields.get("image_processor_type") or fields.get("feature_extractor_type"))
    side, shorter_only = _sides(fields, "size", processor)
    if fields.get("crop_pct") or processor.startswith("ConvNext"):
        fraction = number(fields, "crop_pct") if fields.get("crop_pct") else 224 / 256
        return side, None if side >= _WARPED_FROM else fraction
    if not fields.get("do_center_crop"):
        if shorter_only:
            raise ValueError("images keep their aspect ratio and are not cropped to a square")
        return side, None
    crop, _ = _sides(fields, "crop_size", processor)
    if shorter_only:
        return crop, crop_fraction(crop, side)
    if isinstance(fields["size"], int):
        raise ValueError(f"size={side} may be of the shorter side or of both, before the crop")
    if crop != side:
        raise ValueError(f"images are warped to {side} pixels and then cropped to {crop}")
    return side, None


def _sides(fields: Mapping[str, Any], name: str, processor: str) -> tuple[int, bool]:
    """A side in pixels, and whether it is only that of the shorter side."""
    size = fields.get(name)
    if not isinstance(size, Mapping):
        return whole_number(fields, name), bool(_OF_SHORTER_SIDE.match(processor))
    if size.keys() == {"shortest_edge"}:
        return whole_number(size, "shortest_edge"), True
    if size.keys() != {"height", "width"}:
        raise unexpected(name, size, "of shortest_edge, or of height and width")
    height, width = whole_number(size, "height"), whole_number(size, "width")
    if height != width:
        raise ValueError(f"the images are {height} x {width}, not square")
    return height, False


def _filter(resample: Any) -> str:
    """The name of one of Pillow's filters."""
    if type(resample) is not int or resample not in set(Image.Resampling):
        raise unexpected("resample", resample, "the number of one of Pillow's filters")
    return Image.Resampling(resample).name.lower()
