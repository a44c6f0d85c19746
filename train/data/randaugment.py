"""RandAugment (Cubuk et al., arXiv:1909.13719) with the operations and magnitudes of timm."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.data.operations import AFFINE_MAPS, VALUE_OPERATIONS, warp
from train.errors import RunError

OPERATIONS = (*VALUE_OPERATIONS, *AFFINE_MAPS)
LARGEST_MAGNITUDE = 10

# The name of an operation, and its argument if it takes one.
Operation = tuple[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Random operations of random magnitude, applied in sequence.

    Operations are drawn from the fifteen `OPERATIONS`, with replacement, and each is applied with
    the given probability. Magnitudes are normally distributed and clipped to [0, 10]. Operations
    with two directions have a random sign.

    Attributes:
      magnitude: mean of the magnitudes, 0 to 10.
      count: number of operations that are drawn for an image.
      probability: of applying an operation that is drawn.
      magnitude_std: standard deviation of the magnitudes.
      increasing: whether the strength of all operations increases with the magnitude (`inc1` in
        timm). Otherwise Posterize and Solarize get weaker, and the factors of Color, Contrast,
        Brightness and Sharpness rise from 0.1 to 1.9.
      fill: colour for pixels from outside the image, a value for each channel.
      interpolation: of affine maps, "bicubic" or "bilinear".
    """

    magnitude: int = LARGEST_MAGNITUDE
    count: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    increasing: bool = False
    fill: tuple[int, ...] = (128, 128, 128)
    interpolation: str = "bicubic"

    @classmethod
    def parse(
        cls, spelling: str, mean: Sequence[float], interpolation: str = "bicubic"
    ) -> "RandAugment":
        """Parses timm's notation, such as "rand-m9-mstd0.5-inc1".

        The parts may be in any order, and have the class's defaults. Unsupported parts are `t`
        (other sets of operations), `mmax` (larger magnitudes) and `mstd` above 100 (uniform
        magnitudes).

        Args:
          spelling: see above.
          mean: of the data set, for values in [0, 1]; the fill of affine maps.
          interpolation: of affine maps, "bicubic" or "bilinear".

        Raises:
          RunError: the notation is wrong or unsupported.
        """
        first, *parts = spelling.split("-")
        if first != "rand":
            raise _not_understood(spelling, first)
        fields: dict[str, Any] = dict(_field(spelling, part) for part in parts)
        fill = tuple(min(255, round(255 * value)) for value in mean)
        return cls(**fields, fill=fill, interpolation=interpolation)

    def __str__(self) -> str:
        """In timm's notation, without the parts that have default values."""
        values = {key: getattr(self, field) for key, (field, _, _) in _FIELDS.items()}
        differ = {k: v for k, v in values.items() if v != getattr(RandAugment, _FIELDS[k][0])}
        return "-".join(["rand", *(f"{key}{value:g}" for key, value in differ.items())])

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draws the operations for an image."""
        drawn = []
        for index in rng.integers(len(OPERATIONS), size=self.count):
            if rng.random() < self.probability:
                magnitude = rng.normal(self.magnitude, self.magnitude_std)
                magnitude = min(max(magnitude, 0), LARGEST_MAGNITUDE)
                sign = 1 if rng.random() < 0.5 else -1
                name = OPERATIONS[index]
                drawn.append((name, arguments(name, magnitude, sign, self.increasing)))
        return drawn

    def apply(self, image: np.ndarray, drawn: Sequence[Operation]) -> np.ndarray:
        """Applies operations to an image, uint8 (H, W, C)."""
        height, width, _ = image.shape
        for name, values in drawn:
            if name in AFFINE_MAPS:
                (value,) = values
                matrix = AFFINE_MAPS[name](value, width, height)
                image = warp(image, matrix, self.fill, self.interpolation)
            else:
                image = VALUE_OPERATIONS[name](image, *values)
        return image


def arguments(name: str, magnitude: float, sign: int, increasing: bool) -> tuple[float, ...]:
    """The argument of an operation for a magnitude.

    Args:
      name: one of `OPERATIONS`.
      magnitude: 0 to 10.
      sign: 1 or -1, for operations with two directions.
      increasing: see `RandAugment`.

    Returns:
      () for AutoContrast, Equalize and Invert. Otherwise one value: a number of bits (Posterize), a
      threshold (Solarize), a summand (SolarizeAdd), a factor (Color, Contrast, Brightness,
      Sharpness), degrees (Rotate), a slope (ShearX, ShearY), a fraction of the side
      (TranslateXRel, TranslateYRel).
    """
    argument = (_INCREASING_ARGUMENTS if increasing else _ARGUMENTS).get(name)
    return (argument(magnitude / LARGEST_MAGNITUDE, sign),) if argument else ()


def _factor(share: float, sign: int) -> float:
    return share * 1.8 + 0.1


def _factor_away_from_one(share: float, sign: int) -> float:
    return max(0.1, 1 + sign * (share * 0.9))


# (fraction of the largest magnitude, sign) -> argument.
_ARGUMENTS: dict[str, Callable[[float, int], float]] = {
    "Posterize": lambda share, sign: int(share * 4),
    "Solarize": lambda share, sign: int(share * 256),
    "SolarizeAdd": lambda share, sign: int(share * 110),
    "Color": _factor,
    "Contrast": _factor,
    "Brightness": _factor,
    "Sharpness": _factor,
    "Rotate": lambda share, sign: sign * (share * 30),
    "ShearX": lambda share, sign: sign * (share * 0.3),
    "ShearY": lambda share, sign: sign * (share * 0.3),
    "TranslateXRel": lambda share, sign: sign * (share * 0.45),
    "TranslateYRel": lambda share, sign: sign * (share * 0.45),
}
_INCREASING_ARGUMENTS = _ARGUMENTS | {
    "Posterize": lambda share, sign: 4 - int(share * 4),
    "Solarize": lambda share, sign: 256 - int(share * 256),
    "Color": _factor_away_from_one,
    "Contrast": _factor_away_from_one,
    "Brightness": _factor_away_from_one,
    "Sharpness": _factor_away_from_one,
}

# By timm's keys: the field, its type and its largest value.
_FIELDS: dict[str, tuple[str, type, float]] = {
    "m": ("magnitude", int, LARGEST_MAGNITUDE),
    "n": ("count", int, math.inf),
    "p": ("probability", float, 1),
    "mstd": ("magnitude_std", float, 100),
    "inc": ("increasing", bool, 1),
}


def _field(spelling: str, part: str) -> tuple[str, float]:
    """From "mstd0.5" to ("magnitude_std", 0.5)."""
    match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
    if not match or match[1] not in _FIELDS:
        raise _not_understood(spelling, part)
    field, kind, largest = _FIELDS[match[1]]
    value = float(match[2])
    if value > largest or kind(value) != value:
        raise _not_understood(spelling, part)
    return field, kind(value)


def _not_understood(spelling: str, part: str) -> RunError:
    return RunError(
        f"{part!r} of the RandAugment {spelling!r} is not understood. Write "
        "rand-m9-n2-p0.5-mstd0.5-inc1: m, the magnitude, 0 to 10; n, the number of operations "
        "that are drawn for an image; p, the probability of each; mstd, the standard deviation of "
        "the magnitude, 0 to 100; inc, whether a larger magnitude is always stronger, 0 or 1."
    )
