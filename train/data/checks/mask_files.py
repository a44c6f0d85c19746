"""Checks of single masks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import NO_CLASS, LabelSet
from train.data.checks.pictures import Picture, format_size
from train.data.masks import TURNED, decode_mask, mask_values
from train.reporting.examination import Problem

# Of an antialiased mask: the fewest pixels between their neighbours; their share among the pixels
# that differ from two different neighbours; and among the edges. One in three of the pixels of a
# thin structure is between its neighbours by chance.
_LEAST_BETWEEN, _SHARE_OF_THIN, _SHARE_OF_EDGES = 32, 0.9, 0.2


class LookedAtMask(NamedTuple):
    """What is known about a mask.

    Attributes:
      size: width and height; None if the mask cannot be used.
      counts: the number of pixels of each value, int64 (256,); None likewise.
      problems: what is wrong with it.
    """

    size: tuple[int, int] | None
    counts: np.ndarray | None
    problems: tuple[Problem, ...]


def look_at_mask(data: bytes, origin: str, label_set: LabelSet) -> LookedAtMask:
    """Decodes a mask as training does, and counts its values.

    Args:
      data: of the file.
      origin: its name in messages.
      label_set: gives each value its class.
    """
    try:
        values = mask_values(data, origin)
    except ImageError as error:
        message = f"{error} Training stops at it."
        return LookedAtMask(None, None, (Problem("error", "unusable mask", message),))
    counts = np.bincount(values.reshape(-1), minlength=256)
    height, width = values.shape
    wrong = bool(counts[label_set.class_of_value == NO_CLASS].any())
    problems = tuple(_problems(data, origin, label_set, values, wrong))
    return LookedAtMask((width, height), counts, problems)


def wrong_size(mask: LookedAtMask, origin: str, picture: Picture) -> Iterator[Problem]:
    """An error if the mask has another size than its image.

    Args:
      mask: what is known about it.
      origin: its name in messages.
      picture: its image.
    """
    if mask.size and picture.size and mask.size != picture.size:
        is_turned = "applied EXIF orientation" in picture.oddities
        remedy = ": use the mask of this image, or resize the mask with the nearest value"
        if is_turned and mask.size == picture.size[::-1]:
            remedy = TURNED
        yield Problem(
            "error",
            "sizes that differ",
            f"the mask {origin} has {format_size(mask.size)} pixels, and its image "
            f"{picture.origin} has {format_size(picture.size)}{remedy}.",
        )


def looks_antialiased(values: np.ndarray) -> bool:
    """Whether the edges in a mask have values between those of their sides.

    Args:
      values: uint8 (H, W).
    """
    if len(np.unique(values)) < 3:
        return False
    between = thin = edges = 0
    for rows in (values, values.T):
        before, here, after = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
        differ = (here != before) & (here != after) & (before != after)
        rising = (before < here) & (here < after)
        falling = (before > here) & (here > after)
        between += np.count_nonzero(rising | falling)
        thin += np.count_nonzero(differ)
        edges += np.count_nonzero(here != before)
    fewest = max(_LEAST_BETWEEN, _SHARE_OF_EDGES * edges, _SHARE_OF_THIN * thin)
    return bool(between >= fewest)


def _problems(
    data: bytes, origin: str, label_set: LabelSet, values: np.ndarray, wrong: bool
) -> Iterator[Problem]:
    if looks_antialiased(values):
        yield Problem(
            "error" if wrong else "warning",
            "antialiased mask",
            f"the mask {origin} looks as if it was resized or drawn with antialiasing: values "
            "at its edges are between those of their sides, and stand for other classes or none. "
            "Make it again with the nearest value.",
        )
    elif wrong:
        try:
            decode_mask(data, origin, label_set)
        except ImageError as error:
            yield Problem("error", "values that are no class", str(error))
