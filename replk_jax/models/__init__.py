"""The networks."""

from replk_jax.models.mobilenet_v2 import MobileNetV2, MobileNetV2Architecture
from replk_jax.models.registry import create_model, list_models
from replk_jax.models.replknet import RepLKNet, RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGG, RepVGGArchitecture
from replk_jax.models.resnet import ResNet, ResNetArchitecture

__all__ = [
    "MobileNetV2",
    "MobileNetV2Architecture",
    "RepLKNet",
    "RepLKNetArchitecture",
    "RepVGG",
    "RepVGGArchitecture",
    "ResNet",
    "ResNetArchitecture",
    "create_model",
    "list_models",
]
