"""The reference data of Cascade Mask R-CNN: what mmdetection computed, and its tiny detector."""

from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np

import replk_jax
from replk_jax.detection.structures import Truths
from replk_jax.detection.two_stage import TwoStageDetector
from tests import downstream

load = cache(partial(downstream.load, "cascade_mask_rcnn"))
manifest = partial(downstream.manifest, "cascade_mask_rcnn")
SIZES = jnp.asarray([[128, 192], [120, 180]])  # of the two images, without padding
STRIDES = (4, 8, 16, 32, 64)
FIELDS: dict[str, Any] = dict(
    num_classes=5,
    neck_channels=16,
    rpn_channels=16,
    rpn_test_pre_nms=60,
    rpn_test_post_nms=40,
    rpn_train_pre_nms=100,
    rpn_train_post_nms=60,
    rpn_sample_count=64,
    box_convs=2,
    box_conv_channels=16,
    box_fc_channels=24,
    mask_convs=2,
    mask_channels=16,
    sample_count=24,
    max_detections=12,
)


def tiny_detector(**fields: Any) -> tuple[TwoStageDetector, dict[str, Any]]:
    """The detector of `small/weights.npz`, training-time, and its variables.

    Args:
      **fields: of `create_detector`.
    """
    model = replk_jax.create_detector(
        "cascade_mask_rcnn", downstream.ARCHITECTURE, **{**FIELDS, **fields}
    )
    assert isinstance(model, TwoStageDetector)
    images = jnp.zeros((1, 64, 64, 3), model.dtype)
    return model, downstream.fill(model, load("weights"), images)


def truths(padding: int = 0) -> Truths:
    """The annotated objects of the two images, padded to 5 and `padding` more.

    The padding is what would be objects.
    """
    arrays, most = load("train_frozen_bn"), 5 + padding
    boxes = np.tile(np.float32([8, 8, 40, 40]), (2, most, 1))
    classes = np.ones((2, most), np.int32)
    valid = np.zeros((2, most), bool)
    masks = np.ones((2, most, 128, 192), np.uint8)
    for image in range(2):
        count = len(arrays[f"gt_labels_{image}"])
        boxes[image, :count] = arrays[f"gt_boxes_{image}"]
        classes[image, :count] = arrays[f"gt_labels_{image}"]
        valid[image, :count] = True
        bits = unpacked(arrays, f"gt_masks_packed_{image}", f"gt_masks_shape_{image}")
        masks[image, :count] = bits
    packed = np.packbits(masks, axis=-1)
    return Truths(*map(jnp.asarray, (boxes, classes, valid, packed)))


def unpacked(arrays: dict[str, np.ndarray], packed: str, shape: str) -> np.ndarray:
    """Masks (n, H, W) of 0 and 1, from the names of their bits and of their shape."""
    size = arrays[shape]
    return np.unpackbits(arrays[packed])[: np.prod(size)].reshape(size)
