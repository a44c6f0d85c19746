"""The reference data in ../shared/golden/downstream/segmentation: what mmsegmentation computed."""

from functools import partial
from typing import Any

import jax.numpy as jnp

import replk_jax
from tests import downstream
from tests.downstream import ARCHITECTURE

load = partial(downstream.load, "segmentation")
manifest = partial(downstream.manifest, "segmentation")
section, fill = downstream.section, downstream.fill


def tiny_upernet(**fields: Any) -> tuple[replk_jax.SegmentationNetwork, dict[str, Any]]:
    """The tiny segmenter of `small/weights.npz`, training-time, and its variables.

    Args:
      **fields: of `SegmentationNetwork`, such as `align_corners` or `dtype`.
    """
    model = replk_jax.create_segmenter(
        "upernet",
        ARCHITECTURE,
        num_classes=7,
        channels=24,
        auxiliary_channels=16,
        **fields,
    )
    return model, fill(model, load("weights"), jnp.zeros((1, 32, 32, 3), model.dtype))
