"""Normalises images that are padded to a common size."""

from collections.abc import Sequence

import jax

from replk_jax.vision.base_preprocessing import normalize
from replk_jax.vision.padding import blank_padding


def normalized(
    images: jax.Array, valid_size: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Normalised images that are 0 in their padding, as mmsegmentation and mmdetection pad.

    Args:
      images: uint8 (N, H, W, C).
      valid_size: int32 (N, 2), the height and width that are not padding.
      mean, std: one per channel, for values in [0, 1].

    Returns:
      Float32 (N, H, W, C).
    """
    return blank_padding(normalize(images, mean, std), valid_size)
