"""Objects in COCO's result format."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from replk_jax.vision import label_sets
from replk_jax.vision.run_lengths import compressed_run_lengths

# The numbers from 1 to 90 that no category of COCO 2017 has.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """The category ids of classes: those of COCO 2017 for its 80 classes, else 1, 2, 3 ..."""
    count = len(class_names)
    if tuple(class_names) != label_sets.find("coco").class_names:
        return tuple(range(1, count + 1))
    numbers = range(1, count + len(_UNUSED_IDS) + 1)
    return tuple(number for number in numbers if number not in _UNUSED_IDS)


def coco_result(
    image_id: int, category_id: int, box: np.ndarray, score: float, mask: np.ndarray | None
) -> dict[str, Any]:
    """An object in COCO's result format, ready for JSON.

    Args:
      image_id, category_id: of the object.
      box: (4,): x1, y1, x2, y2 in pixels of the image.
      score: between 0 and 1.
      mask: bool (H, W); None for a box alone.

    Returns:
      `image_id`, `category_id`, `bbox` (x, y, width, height), `score`, and with a mask
      `segmentation`, run lengths.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    result: dict[str, Any] = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(score),
    }
    return result if mask is None else result | {"segmentation": compressed_run_lengths(mask)}
