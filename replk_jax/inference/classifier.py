"""Classification of images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from replk_jax.checkpoint import load
from replk_jax.inference.image_program import (
    Images,
    OneSizeProgram,
    finite_outputs,
    require_backbone,
)
from replk_jax.io.errors import naming
from replk_jax.models.network import Network
from replk_jax.vision import imagenet
from replk_jax.vision.base_preprocessing import BasePreprocessing

_WANTED = "Classifier takes a classifier"


class Prediction(NamedTuple):
    """One class of an image.

    Attributes:
      index: of the class.
      name: of the class.
      score: probability of the class (softmax).
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # in place of tuple.index
    name: str
    score: float


class Classifier(OneSizeProgram):
    """Classifies images: prepares them, and runs the compiled merged network in batches.

        classifier = replk_jax.Classifier.from_file("RepLKNet-31B_ImageNet-1K_224.pth")
        for predictions in classifier(["cat.jpg", "dog.jpg"]):
            print(predictions[0].name, predictions[0].score)

    Args:
      model: a classifier, in either structure.
      variables: of the model.
      preprocessing: of its images.
      class_names: one per class. By default those of ImageNet-1K for 1,000 classes, or else the
        indices of the classes.
      batch_size: the largest batch.

    Raises:
      ValueError: a model without a classifier, no preprocessing, a preprocessing for another
        number of channels, or a wrong number of names.
    """

    def __init__(
        self,
        model: Network,
        variables: Mapping[str, Any],
        preprocessing: BasePreprocessing | None,
        class_names: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ):
        backbone = require_backbone(model, _WANTED)
        num_classes = backbone.num_classes if backbone.has_classifier else None
        if num_classes is None:
            raise ValueError("The network has no classifier; FeatureExtractor runs it.")
        if class_names is None:
            class_names = _default_names(num_classes)
        if len(class_names) != num_classes:
            raise ValueError(
                f"The network has {num_classes} classes; got {len(class_names)} names."
            )
        super().__init__(model, variables, preprocessing, batch_size, _logits)
        self.class_names = tuple(class_names)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        preprocessing: BasePreprocessing | None = None,
        like: str | None = None,
        class_names: Sequence[str] | None = None,
        prefer_ema: bool = False,
        key: str | None = None,
        prefix: str | None = None,
        batch_size: int = 32,
    ) -> "Classifier":
        """Reads a classifier with its preprocessing and names.

        Args:
          path: of any checkpoint that `load` reads.
          preprocessing: replaces that of the file.
          like: a published checkpoint whose preprocessing replaces that of the file; as in `load`.
          class_names: replace those of the file.
          prefer_ema: read the exponential moving average (EMA) of the weights.
          key, prefix: select the weights in a PyTorch checkpoint; as in `load_torch`.
          batch_size: the largest batch.

        Raises:
          ValueError, OSError: a file that cannot be read, or has no classifier.
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
                network.class_names if class_names is None else class_names,
                batch_size=batch_size,
            )

    def __call__(self, images: Images, *, top_k: int = 5) -> list[list[Prediction]]:
        """The most probable classes of each image, in descending order.

        Args:
          images: one, or several: paths, Pillow images, bytes of files, or uint8 arrays (H, W, C);
            or an array (N, H, W, C).
          top_k: number of classes; all, if the network has fewer.

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        return self.best(self.logits(images), top_k)

    def logits(self, images: Images) -> np.ndarray:
        """The outputs of the network, float32 (N, classes), for images as in `__call__`.

        They can be NaN or infinite.
        """
        return self.run_all(images)

    def probabilities(self, images: Images) -> np.ndarray:
        """The softmax of the logits, float32 (N, classes).

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        return _probabilities(self.logits(images))

    def best(self, logits: np.ndarray, top_k: int = 5) -> list[list[Prediction]]:
        """The most probable classes by logits (N, classes), in descending order.

        Raises:
          ValueError: logits that are NaN or infinite.
        """
        probabilities = _probabilities(logits)
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
        return [
            [Prediction(int(i), self.class_names[i], float(scores[i])) for i in best]
            for scores, best in zip(probabilities, order, strict=True)
        ]


def _logits(model: Network, variables: Mapping[str, Any], images: jax.Array) -> Any:
    """Maps (N, H, W, C) to (N, classes)."""
    return model.apply(variables, images)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~finite_outputs(logits))
    if bad.size:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        raise ValueError(
            f"The logits of {bad.size} of {len(logits)} images are not finite (index {shown}): "
            "no class can be predicted. The training run may have diverged; `logits` returns the "
            "values."
        )
    return np.asarray(jax.nn.softmax(logits))


def _default_names(num_classes: int) -> Sequence[str]:
    if num_classes == len(imagenet.class_names()):
        return imagenet.class_names()
    return [str(index) for index in range(num_classes)]
