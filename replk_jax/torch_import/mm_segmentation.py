"""Reads configurations of mmsegmentation: settings of the network, and the test protocol."""

from collections.abc import Mapping
from typing import Any

from replk_jax.torch_import.config_fields import flag, mapping, unexpected, whole_numbers
from replk_jax.torch_import.mm_backbone import read_backbone
from replk_jax.torch_import.mm_keep_ratio import read_test_pipeline
from replk_jax.vision.base_preprocessing import BasePreprocessing


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
    settings: dict[str, Any] = {"align_corners": flag(head, "align_corners")}
    if isinstance(auxiliary, Mapping):
        if flag(auxiliary, "align_corners") != settings["align_corners"]:
            raise ValueError("align_corners of the two heads differ")
        settings |= _index(auxiliary, "auxiliary_in_index")
    settings |= _index(head, "decode_in_index")
    # The defaults of mmsegmentation.
    settings["pool_scales"] = _numbers(head, "pool_scales", (1, 2, 3, 6))
    settings["dilations"] = _numbers(head, "dilations", (1, 6, 12, 18))
    return settings | read_backbone(model)


def _numbers(fields: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return default if fields.get(name) is None else whole_numbers(fields, name)


def _index(head: Mapping[str, Any], name: str) -> dict[str, int]:
    """The feature map that a head sees, if it is one."""
    value = head.get("in_index")
    return {name: value} if type(value) is int else {}


# --- The test protocol -------------------------------------------------------------------


def segmentation_protocol(config: Mapping[str, Any]) -> BasePreprocessing | None:
    """The test pipeline and the test mode of a configuration; None without one.

    Raises:
      ValueError: a pipeline or a mode that `SegmentationProtocol` cannot represent.
    """
    pipeline = read_test_pipeline(config)
    if pipeline is None:
        return None
    if pipeline.padding:
        raise ValueError("the step Pad cannot be represented")
    return BasePreprocessing.from_dict(
        {
            **pipeline.fields,
            "kind": "segmentation",
            "ratios": list(_ratios(pipeline.views)),
            "flip": flag(pipeline.views, "flip"),
            **_windows(config),
        }
    )


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
