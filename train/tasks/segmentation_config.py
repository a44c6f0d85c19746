"""Checks of the fields of a configuration that only segmentation has, and what is built of them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

import replk_jax
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.vision.label_sets import LabelSet
from replk_jax.vision.preprocessing_fields import LARGEST_SIDE
from train.data.segmentation_transforms import SegmentationTransform
from train.engine import config as configuration
from train.engine.config import Rule, check_fields, one_of
from train.errors import RunError
from train.tasks.image_rules import COLOUR_RULES, are_sides
from train.tasks.segmentation_losses import HardPixels, PixelCrossEntropy, SegmentationLoss

# Fields of `config.segmenter` that are of the backbone; the others are of `create_segmenter`.
_OF_BACKBONE = ("out_indices", "contract_dilation", "dilated_layers", "norm_intermediate_features")
# The protocol of evaluations in training that is the fastest.
_FAST_MULTIPLE = 32


def check(config: ConfigDict) -> None:
    """Raises RunError, naming field and value, for the first invalid value."""
    check_fields(config, RULES)
    if config.loss.ohem_threshold is not None and config.loss.ohem_min_kept is None:
        raise RunError(
            f"config.loss.ohem_threshold = {config.loss.ohem_threshold} needs "
            "config.loss.ohem_min_kept, 100000 for example."
        )
    build_protocol(config)


def build_segmenter(config: ConfigDict, num_classes: int) -> SegmentationNetwork:
    """The network of `config.model` and `config.segmenter`.

    Raises:
      RunError: an unknown name, or fields that do not fit.
    """
    model = config.model
    segmenter = {name: value for name, value in config.segmenter.items() if value is not None}
    of_backbone = {name: segmenter.pop(name) for name in _OF_BACKBONE if name in segmenter}
    try:
        of_backbone |= configuration.model_fields(model)
        network = replk_jax.create_segmenter(
            segmenter.pop("head"),
            model.name,
            num_classes,
            backbone_options=of_backbone,
            auxiliary_channels=segmenter.pop("auxiliary_channels", None),
            dtype=jnp.dtype(model.dtype),
            remat=of_backbone.pop("remat", None),
            **segmenter,
        )
    except (ValueError, TypeError) as error:
        raise RunError(f"config.model and config.segmenter: {error}") from error
    if network.in_channels != 3:
        raise RunError(
            f"Segmentation has colour images; config.model.in_channels is {network.in_channels}."
        )
    return network


def build_protocol(config: ConfigDict) -> SegmentationProtocol:
    """The protocol of tests, from `config.test` and the mean and std of `config.data`.

    Raises:
      RunError: a field is invalid.
    """
    test = config.test
    try:
        return SegmentationProtocol(
            limits=test.limits,
            multiple=test.multiple,
            window=test.window,
            stride=test.stride,
            ratios=test.ratios,
            flip=test.flip,
            mean=config.data.mean,
            std=config.data.std,
        )
    except ValueError as error:
        raise RunError(f"config.test: {error}") from error


def training_protocol(config: ConfigDict) -> SegmentationProtocol:
    """The protocol of evaluations during training; see `config.test.in_training`.

    Raises:
      RunError: a field is invalid.
    """
    protocol = build_protocol(config)
    if config.test.in_training == "full":
        return protocol
    multiple = math.lcm(protocol.multiple, _FAST_MULTIPLE)
    first = protocol.ratios[:1]
    return dataclasses.replace(
        protocol, multiple=multiple, window=None, stride=None, ratios=first, flip=False
    )


def build_transform(data: ConfigDict, label_set: LabelSet) -> SegmentationTransform:
    """The transform of training images and masks.

    Args:
      data: the section `data` of configs/segmentation/common.py.
      label_set: of the masks.
    """
    fields: dict[str, Any] = {
        field.name: data[field.name]
        for field in dataclasses.fields(SegmentationTransform)
        if field.name != "label_set"
    }
    return SegmentationTransform(label_set=label_set, **fields)


def build_loss(config: ConfigDict, network: SegmentationNetwork) -> SegmentationLoss:
    """The loss of `config.loss`.

    Raises:
      RunError: another number of class weights than classes.
    """
    loss, weights = config.loss, tuple(config.loss.class_weights)
    if weights and len(weights) != network.num_classes:
        raise RunError(
            f"config.loss.class_weights has {len(weights)} values, and the data set has "
            f"{network.num_classes} classes: give a value for each class, or ()."
        )
    auxiliary = PixelCrossEntropy(network.align_corners, loss.avg_non_ignore, weights)
    hard = None
    if loss.ohem_min_kept is not None:
        hard = HardPixels(loss.ohem_min_kept, loss.ohem_threshold)
    return SegmentationLoss(
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        dtype=network.dtype,
        decode=dataclasses.replace(auxiliary, hard_pixels=hard),
        auxiliary=auxiliary,
        auxiliary_weight=loss.auxiliary_weight,
    )


RULES = (
    Rule(
        "data.crop_size",
        are_sides,
        f"(height, width) in whole pixels, at most {LARGEST_SIDE}, (512, 512) for example",
    ),
    Rule(
        "data.limits test.limits",
        lambda value: are_sides(value) and value[0] >= value[1],
        f"(long, short) in whole pixels, at most {LARGEST_SIDE}, (2048, 512) for example",
    ),
    Rule(
        "data.ratio_range",
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < math.inf,
        "two positive ratios in order, (0.5, 2.0) for example",
    ),
    Rule("data.cat_max_ratio", lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    Rule(
        "loss.auxiliary_weight",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    Rule(
        "loss.class_weights",
        lambda value: all(0 <= weight < math.inf for weight in value),
        "a weight of 0 or more for each class, or ()",
    ),
    Rule("loss.ohem_min_kept", lambda value: value is None or value >= 1, "at least 1, or None"),
    Rule(
        "loss.ohem_threshold",
        lambda value: value is None or 0 < value <= 1,
        "more than 0 and at most 1, or None",
    ),
    Rule("segmenter.dropout_rate", lambda value: 0 <= value < 1, "0 or more and less than 1"),
    Rule("test.in_training", *one_of(("whole", "full"))),
    Rule("test.pictures", lambda value: value >= 0, "0 or more"),
    *COLOUR_RULES,
)
