"""The variables of a model, before any are computed."""

from typing import Any

import flax.linen as nn
import jax


def abstract_variables(model: nn.Module, image_size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables, as `jax.ShapeDtypeStruct` leaves.

    Args:
      model: any model of this package.
      image_size: (height, width) of the image that is followed through the network; the
        variables do not depend on it.
    """
    image = jax.ShapeDtypeStruct((1, *image_size, model.architecture.in_channels), model.dtype)
    return jax.eval_shape(model.init, jax.random.key(0), image)
