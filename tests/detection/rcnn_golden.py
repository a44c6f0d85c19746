"""The reference data of Cascade Mask R-CNN, made with mmdetection."""

import functools

import numpy as np

from tests import reference_data

FOLDER = "downstream/cascade_mask_rcnn/small"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of a case, as they are stored."""
    return reference_data.arrays(f"{FOLDER}/{name}.npz")
