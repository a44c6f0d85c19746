"""Pictures of class maps: colours, an image with colours over it, and a legend.

A class map is an array of classes, uint8 (H, W), with 255 for ignored pixels.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replk_jax.io.text import escaped
from replk_jax.vision.label_sets import IGNORED

IGNORED_COLOUR = (224, 224, 192)  # of the borders in the masks of Pascal VOC

_BACKGROUND, _INK, _OUTLINE = (255, 255, 255), (32, 32, 32), (160, 160, 160)


def colour(classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A class map in the colours of its classes; ignored pixels are light yellow.

    Args:
      classes: uint8 (H, W); 255 for ignored pixels.
      palette: uint8 (K, 3), the RGB colour of each class.

    Returns:
      uint8 (H, W, 3).

    Raises:
      ValueError: an array has another shape or dtype, or a class is not in the palette.
    """
    table = _colour_table(palette)
    _expect_classes(classes)
    beyond = classes[(classes >= len(palette)) & (classes != IGNORED)]
    if beyond.size:
        raise ValueError(
            f"the class map has the class {beyond.max()}, and the palette has colours for "
            f"{len(palette)} classes: use the palette of the same classes"
        )
    return table[classes]


def overlay(
    image: np.ndarray, classes: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """An image with the colours of its classes over it.

    Args:
      image: uint8 (H, W, 3) or (H, W, 1).
      classes, palette: see `colour`.
      opacity: of the colours: 0 shows the image alone, 1 the colours alone.

    Returns:
      uint8 (H, W, 3), rounded to the nearest value, halves to even.

    Raises:
      ValueError: see `colour`; the image is not uint8 or has another size than the class map; or
        the opacity is not between 0 and 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1; it is {opacity}")
    _expect_classes(classes)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            "an image under a class map is uint8 (H, W, 3) or (H, W, 1); "
            f"got {image.dtype} {image.shape}"
        )
    if image.shape[:2] != classes.shape:
        raise ValueError(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels (height x width) and the "
            f"class map {classes.shape[0]} x {classes.shape[1]}: resize one of them first"
        )
    weight = np.float32(opacity)
    mixed = (1 - weight) * image.astype(np.float32) + weight * colour(classes, palette)
    return np.rint(mixed).astype(np.uint8)


def shares(classes: np.ndarray) -> dict[int, float]:
    """The share of the pixels of each class in a class map, the largest first.

    Args:
      classes: see `colour`; ignored pixels count as a class, 255.

    Returns:
      Shares that are above 0, by class; of equal ones, the lower class comes first.
    """
    _expect_classes(classes)
    counts = np.bincount(classes.reshape(-1), minlength=IGNORED + 1)
    order = np.argsort(-counts, kind="stable")
    return {int(number): float(counts[number] / classes.size) for number in order if counts[number]}


def legend(
    labels: Mapping[int, str], palette: np.ndarray, *, width: int, font_size: int = 14
) -> np.ndarray:
    """A box of colour and a text for each class, in columns of equal width.

    The font is that of Pillow, which has the letters of Western languages. Texts that are too long
    for the picture are shortened.

    Args:
      labels: the texts by class, such as {0: "wall", 3: "floor 12 %"}, in the order in which they
        are drawn, from left to right and from top to bottom. 255 is the class of ignored pixels.
      palette: see `colour`.
      width: of the picture, in pixels; at least three times the height of a line, `font_size` + 6.
      font_size: in pixels.

    Returns:
      uint8 (height, width, 3), with white background; as high as needed, 0 without labels.

    Raises:
      ValueError: a class is not in the palette, or the width is too small.
    """
    table = _colour_table(palette)
    missing = [number for number in labels if not (0 <= number < len(palette) or number == IGNORED)]
    if missing:
        raise ValueError(
            f"the legend has the class {missing[0]}, and the palette has colours for "
            f"{len(palette)} classes"
        )
    row, gap = font_size + 6, max(2, font_size // 3)
    if width < 3 * row:
        raise ValueError(f"a legend in this font is at least {3 * row} pixels wide; got {width}")
    if not labels:
        return np.zeros((0, width, 3), np.uint8)

    font = ImageFont.load_default(font_size)
    box = font_size
    longest = max(font.getlength(escaped(text)) for text in labels.values())
    columns = max(1, min(len(labels), int(width // (box + 3 * gap + longest))))
    column = width // columns
    rows = -(-len(labels) // columns)

    picture = Image.new("RGB", (width, rows * row + gap), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for position, (number, text) in enumerate(labels.items()):
        top, left = position // columns * row + gap, position % columns * column + gap
        draw.rectangle(
            (left, top, left + box - 1, top + box - 1),
            fill=tuple(table[number].tolist()),
            outline=_OUTLINE,
        )
        shown = _shortened(escaped(text), font, column - box - 3 * gap)
        draw.text((left + box + gap, top + box / 2), shown, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)


def with_legend(
    picture: np.ndarray, labels: Mapping[int, str], palette: np.ndarray, *, font_size: int = 14
) -> np.ndarray:
    """A picture with a legend below it.

    A picture that is too narrow for a legend gets a white margin at its right.

    Args:
      picture: uint8 (H, W, 3).
      labels, palette, font_size: see `legend`.

    Returns:
      uint8 (height, width, 3).

    Raises:
      ValueError: a class is not in the palette.
    """
    width = max(picture.shape[1], 12 * font_size)
    margin = ((0, 0), (0, width - picture.shape[1]), (0, 0))
    padded = np.pad(picture, margin, constant_values=255)
    return np.concatenate([padded, legend(labels, palette, width=width, font_size=font_size)])


def _colour_table(palette: np.ndarray) -> np.ndarray:
    """The colours of all values of a class map, uint8 (256, 3)."""
    shape_fits = palette.ndim == 2 and palette.shape[1] == 3 and 1 <= len(palette) <= IGNORED
    if palette.dtype != np.uint8 or not shape_fits:
        raise ValueError(
            f"a palette is uint8 (K, 3) with 1 to 255 colours; got {palette.dtype} {palette.shape}"
        )
    table = np.full((IGNORED + 1, 3), IGNORED_COLOUR, np.uint8)
    table[: len(palette)] = palette
    return table


def _expect_classes(classes: np.ndarray) -> None:
    if classes.dtype != np.uint8 or classes.ndim != 2 or not classes.size:
        raise ValueError(
            f"a class map is uint8 (H, W), with 255 for ignored pixels; got {classes.dtype} "
            f"{classes.shape}"
        )


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or as much of it as fits into `width` pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    end = next((n for n in range(len(text), 0, -1) if font.getlength(f"{text[:n]}…") <= width), 0)
    return f"{text[:end]}…"
