"""The operations of RandAugment and of colour jitter, on uint8 arrays (H, W, C) with C 1 or 3.

Those that change values give what Pillow's `ImageOps` and `ImageEnhance` give, to the bit. Those
that move pixels have Pillow's geometry, and all but translations another filter; see `warp`.

OpenCV is given arrays for its results: making one itself, in the midst of its work, it would wait
for the other threads' Python.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

# Parts of 65536 that red, green and blue have in the luminance (ITU-R 601-2, as Pillow rounds
# them), and half a step, for the nearest value.
_LUMINANCE = np.array([[19595, 38470, 7471, 32768]], np.float32)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_VALUES = np.arange(256)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the whole range."""

    def table(counts: np.ndarray) -> np.ndarray:
        present = np.flatnonzero(counts)
        low, high = present[0], present[-1]
        if low == high:
            return _VALUES
        scale = 255 / (high - low)
        return np.clip((_VALUES * scale - low * scale).astype(int), 0, 255)

    return _by_histogram(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Makes the histogram of each channel as even as a map of values can."""

    def table(counts: np.ndarray) -> np.ndarray:
        below = np.cumsum(counts) - counts
        step = below[np.flatnonzero(counts)[-1]] // 255
        return np.minimum((step // 2 + below) // step, 255) if step else _VALUES

    return _by_histogram(image, table)


def invert(image: np.ndarray) -> np.ndarray:
    """255 less each value."""
    return _look_up(image, 255 - _VALUES)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps so many of the highest bits, 0 to 8; none leaves a black image."""
    return _look_up(image, _VALUES & (256 - (256 >> bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values from the threshold on."""
    return _look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Brightens the values in the lower half of the range."""
    return _look_up(image, np.where(_VALUES < 128, np.minimum(_VALUES + addition, 255), _VALUES))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Between its luminance (0), the image (1), and more colour; a grey image stays as it is."""
    if image.shape[2] == 1:
        return image
    return _blend(cv2.cvtColor(_luminance(image), cv2.COLOR_GRAY2RGB), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Between a plain image of the mean luminance (0), the image (1), and more contrast."""
    mean = int(cv2.mean(_luminance(image))[0] + 0.5)
    return _look_up(image, _blend(np.array(mean), _VALUES, factor))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between black (0), the image (1), and a brighter one."""
    return _look_up(image, _blend(np.array(0), _VALUES, factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between the image smoothed within its border (0), itself (1), and a sharper one."""
    smooth = image.copy()
    filtered = cv2.filter2D(image, -1, _SMOOTH, np.empty_like(image))
    smooth[1:-1, 1:-1] = filtered[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def rotation(degrees: float, width: int, height: int) -> np.ndarray:
    """About the centre, counter-clockwise."""
    angle = math.radians(degrees)
    linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([width / 2, height / 2])
    return np.column_stack([linear, centre - linear @ centre])


def shear_x(factor: float, width: int, height: int) -> np.ndarray:
    """Moves each row by so many times its distance from the top."""
    return np.array([[1, factor, 0], [0, 1, 0]])


def shear_y(factor: float, width: int, height: int) -> np.ndarray:
    """Moves each column by so many times its distance from the left."""
    return np.array([[1, 0, 0], [factor, 1, 0]])


def translation_x(share: float, width: int, height: int) -> np.ndarray:
    """To the left, by a share of the width."""
    return np.array([[1, 0, share * width], [0, 1, 0]])


def translation_y(share: float, width: int, height: int) -> np.ndarray:
    """Upwards, by a share of the height."""
    return np.array([[1, 0, 0], [0, 1, share * height]])


def warp(
    image: np.ndarray, matrix: np.ndarray, fill: tuple[int, ...], interpolation: str
) -> np.ndarray:
    """Draws each pixel from where an affine map of its place points to.

    Pillow's bicubic `Image.transform` evaluates the filter (with the parameter -1) anew for each
    pixel. That of a translation is the same for all pixels, and is used as it is. For the other
    maps the axes along which pixels move are enlarged twice (with -0.75), and values between are
    linear: half the time of OpenCV's own bicubic warp. At the border of the image Pillow changes
    to the fill from one pixel to the next; so do translations, and the others blend.

    Args:
      image: uint8 (H, W, C).
      matrix: (2, 3), from (x, y, 1) in the result to (x, y) in the image; pixels are squares of
        side 1, so that the centre of the first lies at (0.5, 0.5), as in Pillow.
      fill: colour of what lies outside, a value for each channel.
      interpolation: "bicubic" or "bilinear".
    """
    height, width, _ = image.shape
    if (matrix[:, :2] == np.eye(2)).all():
        return _translate(image, *matrix[:, 2], fill, _FILTERS[interpolation])
    result = np.empty_like(image)
    if interpolation == "bicubic":
        x, y = np.where((matrix == np.eye(2, 3)).all(axis=1), 1, 2)
        image = cv2.resize(image, (x * width, y * height), interpolation=cv2.INTER_CUBIC)
        matrix = matrix * [[x], [y]]
    matrix = matrix.astype(np.float64)
    matrix[:, 2] += (matrix[:, 0] + matrix[:, 1] - 1) / 2  # OpenCV counts from the first centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (width, height), result, flags=flags, borderValue=fill)


def _bilinear(x: float) -> float:
    return max(1 - x, 0)


def _bicubic(x: float) -> float:
    if x < 1:
        return (x - 2) * x * x + 1
    return ((5 - x) * x - 8) * x + 4 if x < 2 else 0


# The weight of a pixel at a distance, as in Pillow's `Image.transform`.
_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}


def _translate(
    image: np.ndarray,
    right: float,
    below: float,
    fill: tuple[int, ...],
    weight: Callable[[float], float],
) -> np.ndarray:
    """Draws each pixel from so far to the right of it and below: a fraction, then whole pixels.

    The nearest whole number of them, so that what comes from outside is the same as in Pillow.
    """
    height, width, _ = image.shape
    columns, rows = math.floor(right + 0.5), math.floor(below + 0.5)
    if abs(columns) >= width or abs(rows) >= height:
        return np.full_like(image, fill)
    taps = np.outer(_taps(below - rows, weight), _taps(right - columns, weight))
    if taps.size > 1:
        image = cv2.filter2D(image, -1, taps, np.empty_like(image), borderType=cv2.BORDER_REPLICATE)
    kept = image[_remaining(rows), _remaining(columns)]
    borders = *_borders(rows), *_borders(columns)
    moved = cv2.copyMakeBorder(kept, *borders, cv2.BORDER_CONSTANT, value=fill)
    return moved.reshape(image.shape)


def _taps(part: float, weight: Callable[[float], float]) -> list[float]:
    """The filter that moves a row or column by a part of a pixel, at most half of one."""
    return [weight(abs(place - part)) for place in range(-2, 3)] if part else [1.0]


def _remaining(shift: int) -> slice:
    """Which rows or columns are still there when each has moved so many places to the front."""
    return slice(max(shift, 0), min(shift, 0) or None)


def _borders(shift: int) -> tuple[int, int]:
    """How many are then missing, in front and behind."""
    return max(-shift, 0), max(shift, 0)


def _luminance(image: np.ndarray) -> np.ndarray:
    """Of each pixel, uint8 (H, W, 1), as Pillow rounds it.

    Every sum of the products is a whole number below 2^24, so float32 holds it.
    """
    if image.shape[2] == 1:
        return image
    parts = cv2.transform(image.astype(np.float32), _LUMINANCE)
    return (parts * np.float32(1 / 65536)).astype(np.uint8)[:, :, None]


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """From `start` (0) to `image` (1) and beyond, in float32 and cut, as `Image.blend`."""
    start = start.astype(np.float32)
    farther = np.float32(factor) * np.subtract(image, start, dtype=np.float32)
    return np.clip(start + farther, 0, 255).astype(np.uint8)


def _by_histogram(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps the values of each channel by a table that follows from their counts."""
    channels = range(image.shape[2])
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in channels]
    return _look_up(image, np.stack([table(count.astype(int)) for count in counts], axis=-1))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Maps each value by a table (256,), or by its channel's (256, C)."""
    return cv2.LUT(image, table.astype(np.uint8).reshape(1, 256, -1), np.empty_like(image))


# By timm's names. What changes values takes the image and at most one argument; what moves pixels
# takes one and the width and height, and returns the matrix for `warp`.
VALUE_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
AFFINE_MAPS: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "Rotate": rotation,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translation_x,
    "TranslateYRel": translation_y,
}
