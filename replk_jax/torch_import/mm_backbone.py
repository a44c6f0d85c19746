"""Reads the backbone of a composite network in configurations: its stages and its dilation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.torch_import.config_fields import flag, whole_numbers
from replk_jax.torch_import.mm_config import (
    USUAL_STRIDES,
    dilates_otherwise,
    output_stride,
    strides_in_1x1,
    type_name,
)


def read_backbone(model: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `out_indices`, `output_stride`, `contract_dilation` and `stride_in_1x1` that it has.

    Args:
      model: the entry `model` of a configuration.

    Raises:
      ValueError: settings of other types, or that a backbone of this package cannot have.
    """
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping):
        return {}
    settings: dict[str, Any] = {}
    indices = backbone.get("out_indices")
    if isinstance(indices, list | tuple) and all(type(i) is int and i >= 0 for i in indices):
        settings["out_indices"] = tuple(sorted(set(indices)))  # the order of its feature maps
    kind = type_name(backbone)
    if kind not in USUAL_STRIDES:
        return settings
    usual = USUAL_STRIDES[kind]
    strides = whole_numbers({"strides": usual, **_given(backbone)}, "strides")
    dilations = whole_numbers({"dilations": (1,) * len(strides), **_given(backbone)}, "dilations")
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
        settings["contract_dilation"] = flag(backbone, "contract_dilation")
    return settings


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _dilations(strides: Sequence[int], usual: Sequence[int]) -> tuple[int, ...]:
    """The dilation of every stage that keeps the field of view of the usual strides."""
    return tuple(
        math.prod(usual[: s + 1]) // math.prod(strides[: s + 1]) for s in range(len(usual))
    )
