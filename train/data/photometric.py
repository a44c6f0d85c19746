"""Photometric distortion: random brightness, contrast, saturation and hue, as in mmsegmentation.

Each step is applied with probability 1/2. After each, values are cut to 0 to 255 and truncated.
(`PhotoMetricDistortion` of mmsegmentation 0.30; Liu et al., arXiv:1512.02325, section 2.2.)
"""

from typing import NamedTuple

import cv2
import numpy as np

_BRIGHTNESS = (-32.0, 32.0)  # is added
_FACTORS = (0.5, 1.5)  # of contrast and saturation
_HUES = (-18, 18)  # are added, in steps of 2 degrees; the upper end is excluded
_HUE_STEPS = 180  # of OpenCV's circle of hues
_VALUES = np.arange(256, dtype=np.float32)


class Distortion(NamedTuple):
    """The random draws; None for a step that is not applied.

    Attributes:
      brightness: added to all values.
      contrast: factor on all values.
      saturation: factor on the saturation.
      hue: added to the hue, in steps of 2 degrees.
      contrast_first: whether contrast comes before saturation and hue, or after them.
    """

    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: int | None
    contrast_first: bool


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """The random draws for an image."""
    brightness, contrast_first, contrast, saturation, hue = rng.random(5) < 0.5
    return Distortion(
        rng.uniform(*_BRIGHTNESS) if brightness else None,
        rng.uniform(*_FACTORS) if contrast else None,
        rng.uniform(*_FACTORS) if saturation else None,
        int(rng.integers(*_HUES)) if hue else None,
        bool(contrast_first),
    )


def distort(image: np.ndarray, distortion: Distortion) -> np.ndarray:
    """Applies a distortion.

    Brightness and contrast look up each value in a table. Saturation and hue each convert the image
    to OpenCV's HSV and back, as in mmsegmentation.

    Args:
      image: uint8 (H, W, 3), RGB.
      distortion: the draws.

    Returns:
      uint8 (H, W, 3).
    """
    brightness, contrast, saturation, hue, contrast_first = distortion
    image = np.ascontiguousarray(image)
    table = _VALUES
    if brightness is not None:
        table = _cut(table + np.float32(brightness))
    if contrast is not None and contrast_first:
        table = _cut(table * np.float32(contrast))
    if table is not _VALUES:
        image = _look_up(image, table)
    if saturation is not None:
        image = _in_hsv(image, 1, _cut(_VALUES * np.float32(saturation)))
    if hue is not None:
        image = _in_hsv(image, 0, (_VALUES + hue) % _HUE_STEPS)
    if contrast is not None and not contrast_first:
        image = _look_up(image, _cut(_VALUES * np.float32(contrast)))
    return image


def _cut(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255."""
    return np.floor(np.clip(values, 0, 255))


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Maps the values of a channel of HSV by a table (256,)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV, np.empty_like(image))
    values = cv2.extractChannel(hsv, channel, np.empty(image.shape[:2], np.uint8))
    cv2.insertChannel(_look_up(values, table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, np.empty_like(image))


def _look_up(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Maps each value by a table (256,)."""
    return cv2.LUT(values, table.astype(np.uint8), np.empty_like(values))
