"""Large-kernel convolutional networks and structural re-parameterization in JAX."""

import warnings as _warnings

from replk_jax.checkpoint import Checkpoint, load, save
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.registry import create_detector, list_detectors
from replk_jax.export import export_model
from replk_jax.inference.classifier import Classifier, Prediction
from replk_jax.inference.detector import Detected, Detector
from replk_jax.inference.detector_export import export_detector
from replk_jax.inference.features import FeatureExtractor
from replk_jax.inference.segmenter import Segmenter
from replk_jax.inference.segmenter_export import export_segmenter
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
from replk_jax.models.summary import Summary, summary
from replk_jax.ops import DepthwiseConv2D, depthwise_conv2d
from replk_jax.pretrained import list_pretrained
from replk_jax.reparam import (
    Equivalence,
    check_equivalence,
    merge_branches,
    reparameterize,
)
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.registry import create_segmenter, list_segmenters
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.torch_import import (
    Recognized,
    convert_state_dict,
    infer_architecture,
    load_torch,
    save_torch,
)
from replk_jax.vision.preprocessing import Preprocessing

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Classifier",
    "DepthwiseConv2D",
    "Detected",
    "DetectionNetwork",
    "Detector",
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
    "SegmentationNetwork",
    "SegmentationProtocol",
    "Segmenter",
    "Summary",
    "check_equivalence",
    "convert_state_dict",
    "create_detector",
    "create_model",
    "create_segmenter",
    "depthwise_conv2d",
    "export_detector",
    "export_model",
    "export_segmenter",
    "infer_architecture",
    "list_detectors",
    "list_models",
    "list_pretrained",
    "list_segmenters",
    "load",
    "load_torch",
    "merge_branches",
    "reparameterize",
    "save",
    "save_torch",
    "summary",
]


def __dir__() -> list[str]:
    return sorted((*globals(), "SavedNetwork"))


def __getattr__(name: str) -> type:
    """Names of earlier versions."""
    if name == "SavedNetwork":
        _warnings.warn(
            "replk_jax.SavedNetwork is now replk_jax.Checkpoint.", DeprecationWarning, stacklevel=2
        )
        return Checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
