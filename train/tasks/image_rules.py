"""Rules for the fields of images that segmentation and detection share."""

import math
from typing import Any

from replk_jax.vision.preprocessing_fields import LARGEST_SIDE
from train.engine.config import Rule


def are_sides(value: Any) -> bool:
    """Whether a value has two numbers of pixels."""
    return len(value) == 2 and all(
        type(side) is int and 1 <= side <= LARGEST_SIDE for side in value
    )


COLOUR_RULES = (
    Rule(
        "data.mean",
        lambda value: len(value) == 3 and all(map(math.isfinite, value)),
        "three numbers, of red, green and blue",
    ),
    Rule(
        "data.std",
        lambda value: len(value) == 3 and min(value) > 0,
        "three positive numbers, of red, green and blue",
    ),
)
