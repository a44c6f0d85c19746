"""Pictures of objects: their boxes, masks and names over an image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replk_jax.io.text import escaped
from replk_jax.vision.label_sets import default_palette, palette_of

_SMALLEST_FONT = 11  # pixels
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)


def object_palette(class_names: Sequence[str]) -> np.ndarray:
    """A colour for each class of objects.

    They are those of the known label set with these names, or else the 255 of Pascal VOC without
    black, which is its background, again and again.

    Args:
      class_names: K names.

    Returns:
      RGB, uint8 (K, 3).
    """
    palette = palette_of(class_names)
    if np.array_equal(palette, default_palette(len(class_names))):
        return default_palette(256)[1 + np.arange(len(class_names)) % 255]
    return palette


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    colours: np.ndarray,
    labels: Sequence[str],
    masks: Sequence[np.ndarray] | None = None,
    *,
    opacity: float = 0.45,
) -> np.ndarray:
    """An image with the outlines of boxes, a label at each, and masks with their contours.

    The first objects are drawn last, so that the most confident ones are in front. Lines and
    letters grow with the image. The font is that of Pillow, which has the letters of Western
    languages.

    Args:
      image: uint8 (H, W, 3) or (H, W, 1).
      boxes: float (M, 4): x1, y1, x2, y2 in pixels. They may exceed the image.
      colours: of the objects, uint8 (M, 3), RGB.
      labels: a text for each object; one that is empty draws none.
      masks: bool (H, W) for each object; None draws boxes alone.
      opacity: of the masks: 0 shows the image alone, 1 the colours alone.

    Returns:
      uint8 (H, W, 3).

    Raises:
      ValueError: arrays of other shapes or dtypes, boxes that are not finite, or an opacity that is
        not between 0 and 1.
    """
    _check(image, boxes, colours, labels, masks)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1; it is {opacity}")
    height, width, _ = image.shape
    pixels = np.array(np.broadcast_to(image, (height, width, 3)))
    thickness = max(1, round(min(height, width) / 300))
    order = range(len(boxes))[::-1]
    if masks is not None:
        for index in order:
            _blend(pixels, masks[index], colours[index], opacity, thickness)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(_SMALLEST_FONT, min(height, width) // 40))
    corners = [_corners(box, height, width) for box in boxes]
    for index in order:
        draw.rectangle(corners[index], outline=tuple(colours[index].tolist()), width=thickness)
    for index in order:
        if labels[index]:
            _label(draw, corners[index], colours[index], escaped(labels[index]), font, width)
    return np.asarray(picture)


def _blend(
    pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray, opacity: float, thickness: int
) -> None:
    """Mixes a colour into the pixels of a mask, and draws its contour, in place."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return
    around = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    covered, part = mask[around], pixels[around]
    mixed = (1 - opacity) * part[covered].astype(np.float32) + opacity * colour
    part[covered] = np.rint(mixed).astype(np.uint8)
    part[covered & ~_eroded(covered, thickness)] = colour


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """The pixels of a mask that are more than `steps` pixels from its border along an axis."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = (
            mask
            & padded[:-2, 1:-1] & padded[2:, 1:-1]
            & padded[1:-1, :-2] & padded[1:-1, 2:]
        )  # fmt: skip
    return mask


def _corners(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The first and the last column and row of a box, within the image."""
    last = np.array([width, height]) - 1
    x1, y1 = np.clip(np.floor(box[:2]), 0, last).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(box[2:]) - 1, 0, last).astype(int).tolist()
    return x1, y1, max(x1, x2), max(y1, y2)


def _label(
    draw: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    colour: np.ndarray,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> None:
    """Draws a text on its colour: above the box, or at the top of it if there is no room."""
    x, top, _, _ = corners
    left, upper, right, lower = font.getbbox(text)
    gap = 2
    text_width, text_height = right - left + 2 * gap, lower - upper + 2 * gap
    x = max(0, min(x, int(width - text_width)))
    y = top - text_height if top >= text_height else top
    draw.rectangle((x, y, x + text_width - 1, y + text_height - 1), fill=tuple(colour.tolist()))
    # The weights of red, green and blue in the lightness of ITU-R BT.601.
    is_light = float(np.dot(colour, (0.299, 0.587, 0.114))) > 140
    draw.text(
        (x + gap - left, y + gap - upper), text, fill=_DARK if is_light else _LIGHT, font=font
    )


def _check(
    image: np.ndarray,
    boxes: np.ndarray,
    colours: np.ndarray,
    labels: Sequence[str],
    masks: Sequence[np.ndarray] | None,
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"an image under boxes is uint8 (H, W, 3) or (H, W, 1); got {image.dtype} {image.shape}"
        )
    count = len(labels)
    if boxes.shape != (count, 4) or colours.shape != (count, 3) or colours.dtype != np.uint8:
        raise ValueError(
            f"{count} labels are of boxes ({count}, 4) and colours uint8 ({count}, 3); got "
            f"{boxes.shape} and {colours.dtype} {colours.shape}"
        )
    if not np.isfinite(boxes).all():
        raise ValueError("boxes have coordinates that are not finite")
    if masks is None:
        return
    size = image.shape[:2]
    wrong = [mask for mask in masks if mask.shape != size or mask.dtype != bool]
    if len(masks) != count or wrong:
        shown = f"{wrong[0].dtype} {wrong[0].shape}" if wrong else f"{len(masks)} masks"
        raise ValueError(f"masks are {count} arrays bool {size}; got {shown}")
