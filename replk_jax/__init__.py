"""Large-kernel convolutional networks and structural re-parameterization in JAX."""

from replk_jax.accounting import Summary, summary
from replk_jax.classifier import Classifier, Prediction
from replk_jax.export import export_model
from replk_jax.features import FeatureExtractor
from replk_jax.models import (
    MobileNetV2,
    MobileNetV2Architecture,
    RepLKNet,
    RepLKNetArchitecture,
    RepVGG,
    RepVGGArchitecture,
    ResNet,
    ResNetArchitecture,
    create_model,
    list_models,
)
from replk_jax.ops import DepthwiseConv2D, depthwise_conv2d
from replk_jax.preprocessing import Preprocessing
from replk_jax.reparam import (
    Equivalence,
    check_equivalence,
    merge_branches,
    reparameterize,
)
from replk_jax.saved import SavedNetwork, load, save
from replk_jax.torch_import import (
    Recognized,
    convert_state_dict,
    infer_architecture,
    load_torch,
    save_torch,
)

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "DepthwiseConv2D",
    "Equivalence",
    "FeatureExtractor",
    "MobileNetV2",
    "MobileNetV2Architecture",
    "Prediction",
    "Preprocessing",
    "Recognized",
    "RepLKNet",
    "RepLKNetArchitecture",
    "RepVGG",
    "RepVGGArchitecture",
    "ResNet",
    "ResNetArchitecture",
    "SavedNetwork",
    "Summary",
    "check_equivalence",
    "convert_state_dict",
    "create_model",
    "depthwise_conv2d",
    "export_model",
    "infer_architecture",
    "list_models",
    "load",
    "load_torch",
    "merge_branches",
    "reparameterize",
    "save",
    "save_torch",
    "summary",
]
