"""The padding of batches of images."""

import jax
import jax.numpy as jnp


def blank_padding(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Normalised images with 0, the mean colour, in all pixels beyond their sizes.

    Args:
      images: (N, H, W, C).
      sizes: (N, 2), height and width of each image without its padding.
    """
    _, height, width, _ = images.shape
    rows = jnp.arange(height)[None, :] < sizes[:, :1]
    columns = jnp.arange(width)[None, :] < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0)
