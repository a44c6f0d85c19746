"""The reference data of Cascade Mask R-CNN, made with mmdetection, and its tiny detector."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import replk_jax
from replk_jax.detection.fpn import FPN
from replk_jax.detection.roi_heads import CascadeRoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.structures import Truths
from replk_jax.detection.two_stage import TwoStageDetector
from tests import reference_data
from tests.segmentation import golden as segmentation_golden

FOLDER = "downstream/cascade_mask_rcnn/small"
SIZES = jnp.asarray([[128.0, 192.0], [120.0, 180.0]])  # of the two images, without padding


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of a case, as they are stored."""
    return reference_data.arrays(f"{FOLDER}/{name}.npz")


def images() -> np.ndarray:
    """The two images, (2, 128, 192, 3)."""
    return reference_data.nhwc(load("features")["image"])


def pyramid() -> tuple[np.ndarray, ...]:
    """The five feature maps of the neck."""
    return tuple(reference_data.nhwc(load("features")[f"fpn_{level}"]) for level in range(5))


@functools.cache
def tiny_detector() -> tuple[TwoStageDetector, dict[str, Any]]:
    """The detector of `weights.npz`, training-time, and its variables."""
    backbone = replk_jax.create_model(
        segmentation_golden.ARCHITECTURE, num_classes=None, out_indices=(0, 1, 2, 3)
    )
    model = TwoStageDetector(
        backbone=backbone,
        num_classes=5,
        neck=FPN(channels=16),
        rpn_head=RPNHead(
            channels=16,
            test_pre_nms=60,
            test_post_nms=40,
            train_pre_nms=100,
            train_post_nms=60,
            sample_count=64,
        ),
        roi_head=CascadeRoIHead(
            box_convs=2,
            box_conv_channels=16,
            box_fcs=1,
            box_fc_channels=24,
            box_loss="giou",
            box_loss_weight=10.0,
            mask_convs=2,
            mask_channels=16,
            sample_count=24,
            max_detections=12,
        ),
    )
    images = jnp.zeros((1, 64, 64, 3))
    return model, segmentation_golden.fill(model, load("weights"), images)


def truths(padding: int = 0) -> Truths:
    """The annotated objects of the two images, padded to 5 and `padding` more."""
    arrays = load("train_frozen_bn")
    most = 5 + padding

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1))

    masks = []
    for i in range(2):
        shape = arrays[f"gt_masks_shape_{i}"]
        bits = np.unpackbits(arrays[f"gt_masks_packed_{i}"])[: np.prod(shape)].reshape(shape)
        masks.append(padded(np.packbits(bits, axis=-1)))
    boxes, classes = (
        [arrays[f"{name}_{i}"] for i in range(2)] for name in ("gt_boxes", "gt_labels")
    )
    return Truths(
        jnp.asarray(np.stack([padded(each) for each in boxes])),
        jnp.asarray(np.stack([padded(each) for each in classes])),
        jnp.asarray(np.stack([np.arange(most) < len(each) for each in boxes])),
        jnp.asarray(np.stack(masks)),
    )
