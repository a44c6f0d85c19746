"""The backbone of a composite network: which of its stages the heads see, and its dilation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.models.backbone import Backbone
from replk_jax.models.description import joined

_NUM_FEATURE_MAPS = 4  # that mmsegmentation and mmdetection take from a backbone


def usual_stages(backbone: Backbone) -> tuple[int, ...]:
    """The stages whose feature maps heads usually see.

    Of the last four sizes of feature maps, they are the last stage of each: all four of most
    families, and stages 1, 2, 4 and 6 of MobileNet V2. A RepLKNet with norms of some stages has
    these.
    """
    stages = range(len(backbone.stage_channels))
    if backbone.out_indices and len(backbone.out_indices) < len(stages):
        return backbone.out_indices
    last_of_size = dict(zip(backbone.clone(output_stride=None).stage_strides, stages, strict=True))
    return tuple(last_of_size.values())[-_NUM_FEATURE_MAPS:]


def stages_of_widths(backbone: Backbone, wanted: Sequence[int], head: str) -> tuple[int, ...]:
    """The last stages with some widths, in increasing order.

    Args:
      backbone: of the network.
      wanted: the widths.
      head: the name of what sees them, for the error.

    Raises:
      ValueError: there are none.
    """
    widths = backbone.stage_channels
    stages, found = list(range(len(widths))), []
    for width in reversed(wanted):
        fitting = [stage for stage in stages if widths[stage] == width]
        if not fitting:
            raise ValueError(
                f"its {head} sees feature maps of {joined(tuple(wanted))} channels, and the "
                f"stages of its backbone have {joined(tuple(widths))}"
            )
        found.insert(0, fitting[-1])
        stages = stages[: fitting[-1]]
    return tuple(found)


def with_settings(
    backbone: Backbone, indices: tuple[int, ...], settings: Mapping[str, Any]
) -> Backbone:
    """The backbone that returns the feature maps of some stages.

    Args:
      backbone: inferred from its weights.
      indices: the stages.
      settings: as of `mm_backbone.read_backbone`.

    Raises:
      ValueError: it has fewer stages.
    """
    if indices[-1] >= len(backbone.stage_channels):
        raise ValueError(
            f"out_indices={indices} of its configuration are not all among the "
            f"{len(backbone.stage_channels)} stages of its backbone"
        )
    if "stride_in_1x1" in settings:
        architecture = dataclasses.replace(backbone.architecture, stride_in_1x1=True)
        backbone = backbone.clone(architecture=architecture)
    fields: dict[str, Any] = {
        name: settings[name] for name in ("output_stride", "contract_dilation") if name in settings
    }
    return backbone.clone(out_indices=indices, num_classes=None, **fields)
