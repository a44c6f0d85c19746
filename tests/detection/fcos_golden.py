"""The reference data in ../shared/golden/downstream/fcos: what mmdetection computed."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

import replk_jax
from replk_jax.detection.structures import Truths
from tests import downstream

load = partial(downstream.load, "fcos")
manifest = partial(downstream.manifest, "fcos")
LEVELS = 5
FIELDS: dict[str, Any] = dict(
    num_classes=5,
    neck_channels=32,
    channels=32,
    num_convs=2,
    candidates_per_level=40,
    max_detections=25,
)


def rename(key: str) -> str:
    """The name of a tensor from its name by rule."""
    return key.replace(".weight", ".scale") if ".scales." in key else key


def tiny_fcos(**fields: Any) -> tuple[replk_jax.DetectionNetwork, dict[str, Any]]:
    """The tiny detector of `small/weights.npz`, training-time, and its variables.

    Args:
      **fields: of `create_detector`.
    """
    model = replk_jax.create_detector("fcos", downstream.ARCHITECTURE, **{**FIELDS, **fields})
    images = jnp.zeros((1, 32, 32, 3), model.dtype)
    return model, downstream.fill(model, load("weights"), images, rename=rename)


def truths(images: tuple[int, ...] = (0, 1, 2), objects: int = 6) -> Truths:
    """The annotated objects of images of the case, padded with what would be objects."""
    arrays = load("targets")
    boxes = np.tile(np.float32([8, 8, 40, 40]), (len(images), objects, 1))
    classes = np.ones((len(images), objects), np.int32)
    valid = np.zeros((len(images), objects), bool)
    for row, image in enumerate(images):
        count = len(arrays[f"gt_labels_{image}"])
        boxes[row, :count] = arrays[f"gt_boxes_{image}"]
        classes[row, :count] = arrays[f"gt_labels_{image}"]
        valid[row, :count] = True
    return Truths(jnp.asarray(boxes), jnp.asarray(classes), jnp.asarray(valid))
