"""The structure of a network for inference."""

from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax

from replk_jax.reparam.transform import reparameterize

Model = TypeVar("Model", bound=nn.Module)


def for_inference(model: Model, variables: Mapping[str, Any]) -> tuple[Model, Mapping[str, Any]]:
    """The merged structure of a model with its variables, without heads that only training runs.

    A model that cannot be merged keeps its structure.

    Args:
      model: a network of this package, in either structure.
      variables: of the model.

    Raises:
      ValueError: as `reparameterize`.
    """
    model, variables = model.without_auxiliary_head(variables)
    if not model.mergeable:
        return model.clone(remat=None), variables
    return model.clone(deploy=True, remat=None), jax.jit(reparameterize)(variables)
