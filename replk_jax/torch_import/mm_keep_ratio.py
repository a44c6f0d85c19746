"""Reads test pipelines that keep the aspect ratio: mmsegmentation's and mmdetection's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.torch_import.config_fields import unexpected, whole_number, whole_numbers
from replk_jax.torch_import.mm_config import normalization, test_pipeline, type_name

# Steps that do not change the size of the image.
_OTHER_STEPS = (
    "LoadImageFromFile", "LoadAnnotations", "RandomFlip", "Normalize", "ImageToTensor",
    "DefaultFormatBundle", "Collect", "PackSegInputs", "PackDetInputs", "ToTensor",
)  # fmt: skip
_NO_STEP: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class TestPipeline:
    """The steps of a test pipeline.

    Attributes:
      fields: of `KeepRatio`, as plain data.
      views: the step with several scales and flips; empty without one.
      padding: the step `Pad`; empty without one.
    """

    fields: dict[str, Any]
    views: Mapping[str, Any]
    padding: Mapping[str, Any]


def read_test_pipeline(config: Mapping[str, Any]) -> TestPipeline | None:
    """The test pipeline of a configuration; None without one.

    Raises:
      ValueError: a pipeline of other steps, or one that does not keep the aspect ratio.
    """
    resize, views, padding = _NO_STEP, _NO_STEP, _NO_STEP
    multiple = 1
    for step in test_pipeline(config):
        match type_name(step):
            case "MultiScaleFlipAug":
                views = step
            case "Resize":
                resize = step
            case "ResizeToMultiple":
                multiple = whole_number({"size_divisor": 32, **step}, "size_divisor")
            case "Pad":
                padding = step
            case kind if kind not in _OTHER_STEPS:
                raise ValueError(f"the step {kind} cannot be represented")
    limits = _limits(views, resize)
    if limits is None:
        return None
    if not resize.get("keep_ratio", bool(views)):
        raise ValueError("images are resized without keeping their aspect ratio")
    mean, std = normalization(config)
    fields = {
        "limits": list(limits),
        "multiple": multiple,
        "mean": list(mean),
        "std": list(std),
    }
    return TestPipeline(fields, views, padding)


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
