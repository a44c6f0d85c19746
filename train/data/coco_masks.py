"""Masks of instances in COCO's forms: bitmaps, polygons, and run lengths down the columns.

The mask functions of faster-coco-eval do the work. What they would read wrongly, or would take
minutes for, is refused here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from faster_coco_eval.core import mask as library

# Larger coordinates are a mistake; the time to draw a polygon grows with them.
_LARGEST_COORDINATE = 1e5
_LEAST_NUMBERS = 6  # x and y of three points

RunLengths = dict[str, Any]
"""COCO's compressed run lengths: `size`, [height, width], and `counts`, a string."""


def from_bitmap(bitmap: np.ndarray) -> RunLengths:
    """The compressed run lengths of a bitmap, as COCO's result format has them.

    Args:
      bitmap: (H, W), bool or uint8; not 0 is the instance.

    Returns:
      Run lengths that `json` can write.
    """
    return _with_text(library.encode(np.asfortranarray(bitmap != 0, dtype=np.uint8)))


def to_bitmap(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The bitmap of the `segmentation` of an annotation.

    Args:
      segmentation: see `to_run_lengths`.
      height: of the image.
      width: of the image.

    Returns:
      uint8 (H, W), 1 in the instance and 0 elsewhere.

    Raises:
      ValueError: see `to_run_lengths`.
    """
    return np.ascontiguousarray(library.decode(to_run_lengths(segmentation, height, width)))


def to_run_lengths(segmentation: Any, height: int, width: int) -> RunLengths:
    """The compressed run lengths of the `segmentation` of an annotation.

    Args:
      segmentation: polygons, a list of [x, y, x, y, ...] in pixels, whose union is the instance;
        or run lengths, a mapping with `size` and `counts`, which are compressed (a string) or not
        (a list of integers).
      height: of the image.
      width: of the image.

    Raises:
      ValueError: it is none of both, a polygon has fewer than three points or an impossible
        coordinate, or run lengths do not fit the image.
    """
    if isinstance(segmentation, Mapping):
        return _checked(segmentation, height, width)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        raise ValueError(
            f"a segmentation is a list of polygons, or run lengths; not {segmentation!r:.60}"
        )
    if not segmentation:
        raise ValueError("the segmentation has no polygon")
    polygons = [_polygon(part) for part in segmentation]
    parts = cast(list[dict], library.frPyObjects(polygons, height, width))  # one for each polygon
    return _with_text(library.merge(parts))


def area(run_lengths: RunLengths) -> int:
    """The number of pixels of an instance."""
    return int(library.area(run_lengths))


def _polygon(part: Any) -> list[float]:
    try:
        values = np.asarray(part, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"a polygon is a list of numbers, x, y, x, y, ...; not {part!r:.60}"
        ) from None
    if values.ndim != 1 or values.size % 2 or values.size < _LEAST_NUMBERS:
        raise ValueError(f"a polygon has x and y of three points or more; {part!r:.60} has not")
    if not (np.abs(values) <= _LARGEST_COORDINATE).all():
        raise ValueError(f"a polygon has a coordinate that is no position of a pixel: {part!r:.60}")
    return values.tolist()


def _checked(run_lengths: Mapping[str, Any], height: int, width: int) -> RunLengths:
    size, counts = run_lengths.get("size"), run_lengths.get("counts")
    if list(size if isinstance(size, Sequence) else ()) != [height, width]:
        raise ValueError(
            f"run lengths are of the size {size} (height, width), the image of [{height}, {width}]"
        )
    if isinstance(counts, str | bytes):
        compressed = {"size": [height, width], "counts": counts}
    elif isinstance(counts, Sequence):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"run lengths are integers of 0 or more; not {counts!r:.60}")
        if (total := sum(counts)) != height * width:
            raise ValueError(_wrong_total(total, height, width))
        uncompressed = {"size": [height, width], "counts": counts}
        compressed = cast(dict, library.frPyObjects(uncompressed, height, width))
    else:
        raise ValueError(f"run lengths have a string or a list as counts; not {counts!r:.60}")
    try:
        library.decode(compressed)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"run lengths cannot be read: {error}") from None
    return _with_text(compressed)


def _wrong_total(total: int, height: int, width: int) -> str:
    return (
        f"run lengths have {total} pixels in all, the image has {height} x {width} = "
        f"{height * width}"
    )


def _with_text(run_lengths: Mapping[str, Any]) -> RunLengths:
    counts = run_lengths["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in run_lengths["size"]], "counts": text}
