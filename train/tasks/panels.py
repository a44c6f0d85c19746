"""Pictures with several views of an image side by side."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Width of an image in a picture: larger ones show every second pixel, or fewer; smaller ones are
# enlarged by an integer factor.
_SMALLEST, _LARGEST = 240, 640
_GAP, _TITLE = 8, 22  # pixels


def shown(array: np.ndarray) -> np.ndarray:
    """An image or class map (H, W, ...) in the size of pictures."""
    step, zoom = _step_and_zoom(array.shape[1])
    return array[::step, ::step].repeat(zoom, axis=0).repeat(zoom, axis=1)


def shown_scale(width: int) -> Fraction:
    """The size of what `shown` returns over the size of the image, of a width in pixels."""
    step, zoom = _step_and_zoom(width)
    return Fraction(zoom, step)


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size, uint8 (H, W, 3), in a row, with a title above each."""
    height, width, _ = next(iter(panels.values())).shape
    total = len(panels) * (width + _GAP) - _GAP
    sheet = Image.new("RGB", (total, height + _TITLE), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (title, pixels) in enumerate(panels.items()):
        left = number * (width + _GAP)
        draw.text((left, _TITLE / 2), title, fill=(32, 32, 32), font=font, anchor="lm")
        sheet.paste(Image.fromarray(pixels), (left, _TITLE))
    return np.asarray(sheet)


def _step_and_zoom(width: int) -> tuple[int, int]:
    return -(-width // _LARGEST), max(1, _SMALLEST // width)
