"""Extraction of features from images."""

import os
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.checkpoint import load
from replk_jax.inference.image_program import Images, OneSizeProgram, require_backbone
from replk_jax.io.errors import naming
from replk_jax.models.backbone import FINAL_FEATURE_MAP, Backbone
from replk_jax.models.network import Network
from replk_jax.vision.base_preprocessing import BasePreprocessing

_WANTED = "FeatureExtractor takes a classifier or a backbone"


class FeatureExtractor(OneSizeProgram):
    """Extracts global features of images, and the features of every stage.

        extractor = replk_jax.FeatureExtractor.from_file("RepLKNet-31B_ImageNet-22K.pth")
        features = extractor(["cat.jpg", "dog.jpg"])["features"]  # (2, 1024)

    Args:
      model: a classifier, the same without its head, or a backbone.
      variables: of the model.
      preprocessing: of its images.
      maps: whether to return the feature maps of the stages and the final one, or the means of
        those of the stages over the image.
      batch_size: the largest batch.

    Raises:
      ValueError: a composite network; a merged RepLKNet with a classifier, which contains the
        final norm; no preprocessing, or one for another number of channels.
    """

    def __init__(
        self,
        model: Network,
        variables: Mapping[str, Any],
        preprocessing: BasePreprocessing | None,
        *,
        maps: bool = False,
        batch_size: int = 32,
    ):
        backbone = require_backbone(model, _WANTED)
        if backbone.has_classifier:
            backbone, variables = _without_head(backbone, variables)

        def compute(merged: Backbone, variables: Mapping[str, Any], images: jax.Array):
            return _features(merged, variables, images, maps)

        super().__init__(backbone, variables, preprocessing, batch_size, compute)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        preprocessing: BasePreprocessing | None = None,
        like: str | None = None,
        prefer_ema: bool = False,
        key: str | None = None,
        prefix: str | None = None,
        maps: bool = False,
        batch_size: int = 32,
    ) -> "FeatureExtractor":
        """Reads a network with its preprocessing.

        Args:
          path: of any checkpoint that `load` reads.
          preprocessing: replaces that of the file.
          like: a published checkpoint whose preprocessing replaces that of the file; as in `load`.
          prefer_ema: read the exponential moving average (EMA) of the weights.
          key, prefix: select the weights in a PyTorch checkpoint; as in `load_torch`.
          maps, batch_size: as above.

        Raises:
          ValueError, OSError: a file that cannot be read, or a network that the class rejects.
        """
        network = load(
            path,
            prefer_ema=prefer_ema,
            preprocessing=preprocessing,
            like=like,
            key=key,
            prefix=prefix,
        )
        with naming(path):
            require_backbone(network.model, _WANTED)
            return cls(
                network.model,
                network.variables,
                network.resolve_preprocessing(),
                maps=maps,
                batch_size=batch_size,
            )

    def __call__(self, images: Images) -> dict[str, np.ndarray]:
        """The features of images.

        Args:
          images: one, or several: paths, Pillow images, bytes of files, or uint8 arrays (H, W, C);
            or an array (N, H, W, C).

        Returns:
          Float32 arrays: "features" (N, C), the input of the classifier, which a backbone lacks;
          "stage_0" and so on, (N, C), or (N, H, W, C) with `maps`, after the stage's norm if it
          has one; and with `maps` "final_feature_map" (N, H, W, C), whose mean over the image is
          the features, which a backbone lacks.

        Raises:
          ImageError: an image that cannot be read.
        """
        return self.run_all(images)


def _without_head(model: Backbone, variables: Mapping[str, Any]):
    """The model and its variables without the classifier."""
    if model.deploy and model.norm_joins_head:
        raise ValueError(
            "The merged classifier contains the final norm, so it has no features. Load the "
            "training-time weights, or re-parameterize them without params/head for "
            "num_classes=None."
        )
    params = {k: part for k, part in variables["params"].items() if k != model.head_name}
    return model.clone(num_classes=None), {**variables, "params": params}


def _features(
    model: Backbone, variables: Mapping[str, Any], images: jax.Array, maps: bool
) -> dict[str, jax.Array]:
    result = model.apply(variables, images, mutable=["intermediates"])
    output, state = cast(tuple[jax.Array, Mapping[str, Any]], result)
    features = {} if model.out_indices is not None else {"features": output}
    names = model.feature_names
    if maps and model.out_indices is None:
        names = (*names, FINAL_FEATURE_MAP)
    for name in names:
        (feature_map,) = state["intermediates"][name]
        feature_map = feature_map.astype(jnp.float32)
        features[name] = feature_map if maps else feature_map.mean((1, 2))
    return features
