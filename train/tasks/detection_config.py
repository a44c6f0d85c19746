"""Checks of the fields of a configuration that only detection has, and what is built of them."""

import math
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

import replk_jax
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.two_stage import TwoStageDetector
from replk_jax.vision.preprocessing_fields import LARGEST_SIDE
from train.data.detection_draws import DetectionAugmentation, Size, default_buckets
from train.engine import config as configuration
from train.engine.config import Rule, check_fields, one_of
from train.errors import RunError
from train.tasks.coco_evaluation import LIBRARIES
from train.tasks.image_rules import COLOUR_RULES, are_sides

# Fields of `config.detector` that are of the backbone; the others are of `create_detector`.
_OF_BACKBONE = ("norm_intermediate_features",)


def check(config: ConfigDict) -> None:
    """Raises RunError, naming field and value, for the first invalid value."""
    check_fields(config, RULES)
    data = config.data
    if data.policy == "crop" and not data.crop_scales:
        raise RunError('config.data.policy = "crop" needs config.data.crop_scales.')
    build_protocol(config)


def build_detector(config: ConfigDict, num_classes: int) -> DetectionNetwork:
    """The network of `config.model` and `config.detector`.

    Raises:
      RunError: an unknown name, or fields that do not fit.
    """
    model = config.model
    detector = {name: value for name, value in config.detector.items() if value is not None}
    of_backbone = {name: detector.pop(name) for name in _OF_BACKBONE if name in detector}
    try:
        of_backbone |= configuration.model_fields(model)
        remat = of_backbone.pop("remat", None)
        network = replk_jax.create_detector(
            detector.pop("name"),
            model.name,
            num_classes,
            backbone_options=of_backbone,
            dtype=jnp.dtype(model.dtype),
            remat=remat,
            **detector,
        )
    except (ValueError, TypeError) as error:
        raise RunError(f"config.model and config.detector: {error}") from error
    if predicts_masks(network) and not config.data.masks:
        raise RunError(
            f"config.detector.name = {config.detector.name} predicts masks: set "
            "config.data.masks=True, or take the detector without masks."
        )
    if network.in_channels != 3:
        raise RunError(
            f"Detection has colour images; config.model.in_channels is {network.in_channels}."
        )
    return network


def predicts_masks(network: DetectionNetwork) -> bool:
    """Whether a network predicts masks beside boxes."""
    return isinstance(network, TwoStageDetector) and network.roi_head.masks


def build_protocol(config: ConfigDict) -> DetectionProtocol:
    """The protocol of tests, from `config.test` and the mean and std of `config.data`.

    Raises:
      RunError: a field is invalid.
    """
    test = config.test
    try:
        return DetectionProtocol(
            limits=test.limits,
            pad_multiple=test.pad_multiple,
            mean=config.data.mean,
            std=config.data.std,
        )
    except ValueError as error:
        raise RunError(f"config.test: {error}") from error


def build_augmentation(data: ConfigDict) -> DetectionAugmentation:
    """The augmentation of training images.

    Args:
      data: the section `data` of configs/detection/common.py.
    """
    return DetectionAugmentation(
        scales=data.scales,
        crop_scales=data.crop_scales if data.policy == "crop" else (),
        crop_sizes=data.crop_sizes,
        flip=data.flip,
    )


def training_buckets(config: ConfigDict) -> tuple[Size, ...]:
    """The shapes, (height, width), of training images."""
    return config.data.buckets or default_buckets(config.data.scales, config.test.pad_multiple)


def evaluation_buckets(config: ConfigDict, protocol: DetectionProtocol) -> tuple[Size, ...]:
    """The shapes of images to evaluate on; () for as many as `protocol` gives."""
    if config.test.exact_padding:
        return ()
    return config.test.buckets or protocol.buckets


def _are_limits(value: Any) -> bool:
    return all(are_sides(pair) and pair[0] >= pair[1] for pair in value)


# Names in `config.detector`, what their values are if they are not None, and that in words.
_DETECTOR_RULES = (
    (
        "neck_channels neck_num_outputs max_detections channels num_convs num_groups "
        "candidates_per_level rpn_channels rpn_train_pre_nms rpn_train_post_nms rpn_test_pre_nms "
        "rpn_test_post_nms rpn_sample_count box_size box_conv_channels box_fc_channels "
        "sample_count mask_size mask_channels",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "neck_start_level rpn_smooth_l1_beta sampling_ratio box_convs box_fcs box_loss_weight "
        "mask_convs",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    (
        "score_threshold nms_threshold rpn_nms_threshold rpn_positive_threshold "
        "rpn_negative_threshold rpn_least_positive rpn_positive_fraction positive_fraction",
        lambda value: 0 <= value <= 1,
        "between 0 and 1",
    ),
    ("center_radius rpn_anchor_scale", lambda value: 0 < value < math.inf, "more than 0"),
    (
        "rpn_anchor_ratios",
        lambda value: len(value) >= 1 and all(0 < ratio < math.inf for ratio in value),
        "one number or more, each more than 0",
    ),
    (
        "regression_limits",
        lambda value: all(0 < limit < math.inf for limit in value),
        "numbers, each more than 0",
    ),
)

RULES = (
    Rule(
        "data.scales",
        lambda value: len(value) >= 1 and _are_limits(value),
        f"pairs (long, short) in whole pixels, at most {LARGEST_SIDE}, ((1333, 800),) for example",
    ),
    Rule(
        "data.crop_scales",
        _are_limits,
        f"pairs (long, short) in whole pixels, at most {LARGEST_SIDE}, ((1333, 400),) for example",
    ),
    Rule(
        "data.crop_sizes",
        lambda value: are_sides(value) and value[0] <= value[1],
        "(smallest, largest) in whole pixels, (384, 600) for example",
    ),
    Rule(
        "data.buckets test.buckets",
        lambda value: all(map(are_sides, value)),
        f"pairs (height, width) in whole pixels, at most {LARGEST_SIDE}, or ()",
    ),
    Rule("data.policy", *one_of(("resize", "crop"))),
    Rule("data.max_objects", lambda value: value >= 1, "at least 1"),
    *(
        Rule(
            " ".join(f"detector.{name}" for name in names.split()),
            lambda value, is_valid=is_valid: value is None or is_valid(value),
            f"{expected}, or None",
        )
        for names, is_valid, expected in _DETECTOR_RULES
    ),
    Rule("test.library", *one_of(LIBRARIES)),
    Rule("test.pictures", lambda value: value >= 0, "0 or more"),
    *COLOUR_RULES,
)
