"""Masks of semantic segmentation: decoded from image files whose values stand for classes."""

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError, image_error
from replk_jax.vision.label_sets import NO_CLASS, LabelSet
from train.data.transforms import decode

_FORMATS = ("PNG", "TIFF")
_MODES = ("1", "L", "P")  # of Pillow: bits, grey, indices of a palette
_LOSSY = {b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}  # by the first bytes

# In a PNG, the number of bits of a value is at this position, and its colour type (0 for grey)
# follows.
_BIT_DEPTH = 24
# Tags of a TIFF, and their values that are read: 8 bits; 0 is black, or indices; upright.
_TIFF_TAGS = {258: ((8,),), 262: (1, 3), 274: (None, 1)}
_LOSSY_TIFFS = ("jpeg", "tiff_jpeg", "webp")  # Pillow's names of compressions

_SHOWN = 5  # values in a message
_AS_INDICES = (
    "a mask has one channel of 8 bits whose values are the classes (an index PNG), and 255 where "
    "pixels are ignored"
)
_FROM_SOURCE = "Make it again from its source, as a PNG."

# Of an image whose mask has its size only without the rotation.
TURNED = (
    " after the rotation by its EXIF orientation, which the mask does not have: rotate the mask, "
    "or rotate the pixels of the image and remove the orientation, whichever fits the other"
)


def decode_mask(data: bytes, name: str, label_set: LabelSet) -> np.ndarray:
    """The classes of the pixels of a mask.

    Args:
      data: a PNG or TIFF file, grey or with a palette (whose colours are not used), of at most
        8 bits; the value of a pixel is the number that is stored, also with fewer bits.
      name: what errors call it.
      label_set: gives each value its class.

    Returns:
      uint8 (H, W), the classes and `label_sets.IGNORED`.

    Raises:
      ImageError: no mask or not the whole of one, a format with losses, colours, more bits, or
        values that are no class.
    """
    values = mask_values(data, name)
    # OpenCV looks up values in a fifth of the time that NumPy takes.
    if cv2.LUT(values, (label_set.class_of_value == NO_CLASS).astype(np.uint8)).any():
        raise ImageError(escaped(f"The mask {name} {_wrong_values(values, label_set)}"))
    return cv2.LUT(values, label_set.class_of_value.astype(np.uint8))


def decode_pair(example: dict[str, Any], label_set: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and classes of an example of a `SegmentationSource`.

    As by mmcv, the EXIF orientation is applied to the image and not to the mask.

    Args:
      example: with `image` and `mask` (encoded bytes), `origin` and `mask_origin`.
      label_set: see `decode_mask`.

    Returns:
      The image, uint8 (H, W, 3), RGB; and the mask, uint8 (H, W).

    Raises:
      ImageError: one of them cannot be read (see `decode_mask`), or their sizes differ.
    """
    image = decode(example["image"], 3, example["origin"], upright=True)
    mask = decode_mask(example["mask"], example["mask_origin"], label_set)
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        is_turned = decode(example["image"], 3, example["origin"]).shape[:2] == mask.shape
        raise ImageError(
            escaped(
                f"The mask {example['mask_origin']} has {mask_width} x {mask_height} pixels, and "
                f"its image {example['origin']} has {width} x {height}"
                f"{TURNED if is_turned else ': the sizes must be equal'}."
            )
        )
    return image, mask


def mask_values(data: bytes, name: str) -> np.ndarray:
    """The values that a mask stores, uint8 (H, W); see `decode_mask`."""
    for start, format in _LOSSY.items():
        if data.startswith(start):
            raise ImageError(
                escaped(
                    f"The mask {name} is a {format}, a format that may change values; "
                    f"{_AS_INDICES}. {_FROM_SOURCE}"
                )
            )
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            problem, factor = _check(image, data)
            values = None if problem else np.array(image, np.uint8)
    except UnidentifiedImageError as error:
        raise ImageError(escaped(f"The mask {name} is no PNG, nor a TIFF.")) from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors
        raise image_error(name, error) from error
    if values is None:
        raise ImageError(escaped(f"The mask {name} {problem}"))
    return values if factor == 1 else values // factor


def _check(image: Image.Image, data: bytes) -> tuple[str | None, int]:
    """What is wrong with the kind of a mask, and by what Pillow multiplies its values."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        if image.info.get("compression") in _LOSSY_TIFFS:
            return f"is a TIFF with a compression that changes values. {_FROM_SOURCE}", 1
        if image.mode in _MODES and any(
            tags.get(tag) not in values for tag, values in _TIFF_TAGS.items()
        ):
            return "is a TIFF not of 8 bits, not upright, or whose 0 is white. Save it as a PNG.", 1
    if image.mode not in _MODES:
        kind, remedy = _other_mode(image)
        return f"{kind}; {_AS_INDICES}. {remedy}", 1
    if image.format == "PNG" and image.mode == "L":
        bits = data[_BIT_DEPTH]
        return None, 255 // ((1 << bits) - 1)
    return None, 1


def _other_mode(image: Image.Image) -> tuple[str, str]:
    """What a mask with other values than indices is, and what to do."""
    if image.mode.startswith(("I", "F")):
        return (
            f"has more than 8 bits (mode {image.mode})",
            "Save its values as 8 bits, not scaled.",
        )
    if image.mode == "LA":
        return (
            "has transparency beside its values (mode LA)",
            "Save the first of its channels alone.",
        )
    if image.mode in ("RGB", "RGBA"):
        red, green, blue = (np.asarray(channel) for channel in image.split()[:3])
        if (red == green).all() and (green == blue).all():
            return (
                f"has {len(image.mode)} channels, of which the first three are equal",
                "Save one of these alone.",
            )
    return (
        f"is in colours (mode {image.mode})",
        "Write the number of the class in place of each colour.",
    )


def _wrong_values(values: np.ndarray, label_set: LabelSet) -> str:
    """The values that are no class, with the likely causes and what to do."""
    counts = np.bincount(values.ravel(), minlength=256)
    wrong = np.flatnonzero((counts > 0) & (label_set.class_of_value == NO_CLASS))
    shown = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    valid = np.flatnonzero(label_set.class_of_value != NO_CLASS)
    text = (
        f"has values that are no class: {shown}{more}. Values are {_ranges(valid)}, for "
        f"{len(label_set)} classes and ignored pixels. "
    )
    if len(wrong) == 1 and wrong[0] == len(label_set):
        return text + (
            "If 0 is no class and the first class is 1, set config.data.reduce_zero_label=True; "
            "otherwise a class, such as the background, is missing in the list of classes."
        )
    return text + (
        "Complete the list of classes; or, if the mask was resized with antialiasing, make it "
        "again with the nearest value."
    )


def _ranges(values: np.ndarray) -> str:
    """Numbers in order as text, such as "0 to 18 and 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
