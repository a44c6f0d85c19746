"""Checks of the fields of a configuration that only classification has."""

import math

from ml_collections import ConfigDict

from replk_jax.vision.preprocessing import Preprocessing
from train.data.transforms import RESIZING
from train.engine.config import Rule, check_fields, one_of
from train.errors import RunError


def check(config: ConfigDict) -> None:
    """Raises RunError, naming field and value, for the first invalid value."""
    check_fields(config, RULES)


def build_preprocessing(data: ConfigDict, channels: int) -> Preprocessing:
    """The preprocessing of evaluation images.

    Args:
      data: the section `data` of configs/common.py.
      channels: of the network's input.

    Raises:
      RunError: a field is invalid, or is for another number of channels.
    """
    if channels not in (1, 3):
        raise RunError(
            f"Images have 1 (grey) or 3 (colour) channels; config.model.in_channels is {channels}."
        )
    if not len(data.mean) == len(data.std) == channels:
        raise RunError(
            f"config.data.mean and config.data.std must have {channels} values, one for each "
            f"channel; they are {data.mean} and {data.std}."
        )
    try:
        return Preprocessing(
            image_size=data.image_size,
            crop_fraction=data.eval_crop_fraction,
            mean=data.mean,
            std=data.std,
        )
    except ValueError as error:
        raise RunError(f"config.data: {error}") from error


def _is_range(value: tuple[float, float], top: float) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] <= top


RULES = (
    Rule(
        "data.image_size augmentation.mixup_group_size",
        lambda value: value >= 1,
        "at least 1",
    ),
    Rule(
        "data.color_jitter augmentation.mixup_alpha augmentation.cutmix_alpha",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    Rule("label_smoothing", lambda value: 0 <= value < 1, "0 or more and less than 1"),
    Rule(
        "augmentation.mix_probability augmentation.switch_probability "
        "augmentation.erasing_probability",
        lambda value: 0 <= value <= 1,
        "between 0 and 1",
    ),
    Rule("data.resizing", *one_of(RESIZING)),
    Rule(
        "data.eval_crop_fraction",
        lambda value: value is None or 0 < value <= 1,
        "more than 0 and at most 1, or None",
    ),
    Rule("data.crop_scale", lambda value: _is_range(value, 1), "two shares in order, (0.08, 1.0)"),
    Rule("data.crop_ratio", lambda value: _is_range(value, math.inf), "two ratios in order"),
    Rule("data.mean", lambda value: all(map(math.isfinite, value)), "a number for each channel"),
    Rule("data.std", lambda value: min(value, default=0) > 0, "positive, a value for each channel"),
)
