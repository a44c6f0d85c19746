"""A look at a few masks before training, for a mistake that no mask shows: one class in all."""

import numpy as np

from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import IGNORED
from train.data.masks import decode_mask
from train.data.segmentation_sources import SegmentationSource

_LOOKED_AT = 32


def only_one_class(source: SegmentationSource) -> str | None:
    """A warning if a sample of the masks has one class, or none, where there are several.

    That is so for masks of an object that is 255, which is ignored. Such training has no errors, a
    small loss and perfect scores.

    Args:
      source: of the training. At most 32 of its masks, at even distances, are decoded; as a rule
        the first ones show two classes. Those that cannot be read do not count.
    """
    label_set = source.label_set
    if len(label_set) == 1:
        return None
    found: set[int] = set()
    count = min(_LOOKED_AT, len(source))
    for position in np.linspace(0, len(source) - 1, count, dtype=int).tolist():
        try:
            example = source[position]
            mask = decode_mask(example["mask"], example["mask_origin"], label_set)
        except ImageError:
            continue
        found.update(np.unique(mask).tolist())
        if len(found - {IGNORED}) > 1:
            return None
    if not found:
        return None
    parts = [label_set.class_names[value] for value in sorted(found - {IGNORED})]
    if IGNORED in found:
        parts.append(
            "ignored pixels; 255 is ignored: if it stands for an object, write the number of its "
            "class in place of it"
        )
    return (
        f"Of {len(label_set)} classes, {count} masks that were looked at have only "
        f"{' and '.join(parts)}. python -m train.check looks through all masks."
    )
