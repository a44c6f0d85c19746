"""What detectors take and return beside images, in arrays of fixed shapes."""

from typing import NamedTuple

import jax


class Truths(NamedTuple):
    """The annotated objects of N images, padded to M each.

    Attributes:
      boxes: float32 (N, M, 4): x1, y1, x2, y2 in pixels of the network's input.
      classes: int32 (N, M), from 0.
      valid: bool (N, M), False for padding.
      masks: the pixels of each object in the input of H x W pixels: uint8 (N, M, H, ceil(W / 8)),
        eight columns to a byte, as by `numpy.packbits(..., axis=-1)`. None for boxes alone.
    """

    boxes: jax.Array
    classes: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


class Detections(NamedTuple):
    """The detected objects of N images, the most confident first, padded to D each.

    Attributes:
      boxes: float32 (N, D, 4): x1, y1, x2, y2 in pixels.
      scores: float32 (N, D), between 0 and 1.
      classes: int32 (N, D), from 0; -1 for padding.
      count: int32 (N,), the number of objects. All after them is padding, whose boxes and scores
        are 0.
      masks: float32 (N, D, 28, 28), the probability that the object covers each cell of a grid over
        its box; with another `mask_size` of the head, twice as many cells as that. None for boxes
        alone.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    masks: jax.Array | None = None
