"""The operations of RandAugment and of colour jitter, on uint8 arrays (H, W, C) with C 1 or 3.

Operations on values give the same results as Pillow's `ImageOps` and `ImageEnhance`, bit for bit.
Affine maps have Pillow's geometry; except for translations, they have another filter (see `warp`).

OpenCV gets arrays for its results, because it would have to wait for Python's lock to make them.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

# Weights of red, green and blue in the luminance, times 65536 (ITU-R 601-2, as Pillow rounds them),
# and 1/2 for rounding to the nearest value.
_LUMINANCE = np.array([[19595, 38470, 7471, 32768]], np.float32)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_VALUES = np.arange(256)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches the values of each channel to the full range."""

    def table(counts: np.ndarray) -> np.ndarray:
        present = np.flatnonzero(counts)
        low, high = present[0], present[-1]
        if low == high:
            return _VALUES
        scale = 255 / (high - low)
        return np.clip((_VALUES * scale - low * scale).astype(int), 0, 255)

    return _by_histogram(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalises the histogram of each channel."""

    def table(counts: np.ndarray) -> np.ndarray:
        below = np.cumsum(counts) - counts
        step = below[np.flatnonzero(counts)[-1]] // 255
        return np.minimum((step // 2 + below) // step, 255) if step else _VALUES

    return _by_histogram(image, table)


def invert(image: np.ndarray) -> np.ndarray:
    """255 less each value."""
    return _look_up(image, 255 - _VALUES)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits of each value, 0 to 8; with 0 the image is black."""
    return _look_up(image, _VALUES & (256 - (256 >> bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values at or above the threshold."""
    return _look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Brightens the values in the lower half of the range."""
    return _look_up(image, np.where(_VALUES < 128, np.minimum(_VALUES + addition, 255), _VALUES))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the luminance (factor 0) and the image (1); a grey image stays as it is."""
    if image.shape[2] == 1:
        return image
    return _blend(cv2.cvtColor(_luminance(image), cv2.COLOR_GRAY2RGB), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends a constant image of the mean luminance (factor 0) and the image (1)."""
    mean = int(cv2.mean(_luminance(image))[0] + 0.5)
    return _look_up(image, _blend(np.array(mean), _VALUES, factor))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends a black image (factor 0) and the image (1)."""
    return _look_up(image, _blend(np.array(0), _VALUES, factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image, smoothed except for its border (factor 0), and the image itself (1)."""
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
    """Shifts each row by `factor` times its distance from the top."""
    return np.array([[1, factor, 0], [0, 1, 0]])


def shear_y(factor: float, width: int, height: int) -> np.ndarray:
    """Shifts each column by `factor` times its distance from the left."""
    return np.array([[1, 0, 0], [factor, 1, 0]])


def translation_x(share: float, width: int, height: int) -> np.ndarray:
    """To the left, by a fraction of the width."""
    return np.array([[1, 0, share * width], [0, 1, 0]])


def translation_y(share: float, width: int, height: int) -> np.ndarray:
    """Upwards, by a fraction of the height."""
    return np.array([[1, 0, 0], [0, 1, share * height]])


def warp(
    image: np.ndarray, matrix: np.ndarray, fill: tuple[int, ...], interpolation: str
) -> np.ndarray:
    """Applies an affine map to an image.

    A translation uses the filter of Pillow's `Image.transform` (bicubic with the parameter -1),
    which is the same for all pixels. For other bicubic maps, the image is enlarged twice along the
    axes that change (with the parameter -0.75) and interpolated linearly. This takes half the time
    of OpenCV's bicubic warp. At the border, translations switch to the fill between two pixels, as
    Pillow does; other maps blend.

    Args:
      image: uint8 (H, W, C).
      matrix: (2, 3), from (x, y, 1) in the result to (x, y) in the image. Pixels are squares of
        side 1: the centre of the first one is at (0.5, 0.5), as in Pillow.
      fill: colour outside the image, a value for each channel.
      interpolation: "bicubic" or "bilinear".
    """
    height, width, _ = image.shape
    if (matrix[:, :2] == np.eye(2)).all():
        right, below = matrix[:, 2]
        return _translate(image, right, below, fill, _FILTERS[interpolation])
    result = np.empty_like(image)
    if interpolation == "bicubic":
        x, y = np.where((matrix == np.eye(2, 3)).all(axis=1), 1, 2)
        image = cv2.resize(image, (x * width, y * height), interpolation=cv2.INTER_CUBIC)
        matrix = matrix * [[x], [y]]
    matrix = matrix.astype(np.float64)
    matrix[:, 2] += (matrix[:, 0] + matrix[:, 1] - 1) / 2  # OpenCV's origin is the first centre
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
    """Moves the image to the left by `right` pixels and up by `below` pixels.

    The shift is split into the nearest integer and a fraction, as in Pillow, so that the same
    pixels get the fill.
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
    """The filter that shifts a row or column by a fraction of a pixel, at most 1/2."""
    return [weight(abs(place - part)) for place in range(-2, 3)] if part else [1.0]


def _remaining(shift: int) -> slice:
    """The rows or columns that remain when all are moved by `shift` places to the front."""
    return slice(max(shift, 0), min(shift, 0) or None)


def _borders(shift: int) -> tuple[int, int]:
    """The numbers of rows or columns that are then missing, in front and behind."""
    return max(-shift, 0), max(shift, 0)


def _luminance(image: np.ndarray) -> np.ndarray:
    """The luminance of each pixel, uint8 (H, W, 1), rounded as in Pillow.

    The sums are integers below 2^24, which float32 represents exactly.
    """
    if image.shape[2] == 1:
        return image
    parts = cv2.transform(image.astype(np.float32), _LUMINANCE)
    return (parts * np.float32(1 / 65536)).astype(np.uint8)[:, :, None]


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """start + factor * (image - start), in float32, clipped; as Pillow's `Image.blend`."""
    start = start.astype(np.float32)
    difference = np.float32(factor) * np.subtract(image, start, dtype=np.float32)
    return np.clip(start + difference, 0, 255).astype(np.uint8)


def _by_histogram(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps the values of each channel by a table, computed from their histogram (256,)."""
    channels = range(image.shape[2])
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in channels]
    return _look_up(image, np.stack([table(count.astype(int)) for count in counts], axis=-1))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Maps each value by a table (256,), or by a table for each channel (256, C)."""
    return cv2.LUT(image, table.astype(np.uint8).reshape(1, 256, -1), np.empty_like(image))


# By timm's names. Value operations take the image and at most one argument. Affine maps take an
# argument, the width and the height, and return the matrix for `warp`.
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
