"""The networks."""

from replk_jax.models.registry import create_model, list_models
from replk_jax.models.replknet import RepLKNet, RepLKNetArchitecture

__all__ = ["RepLKNet", "RepLKNetArchitecture", "create_model", "list_models"]
