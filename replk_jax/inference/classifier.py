"""From images to the names of what they show."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from replk_jax.checkpoint import load
from replk_jax.inference.image_program import ImageProgram, Images, finite_outputs
from replk_jax.io.errors import naming
from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.vision import imagenet
from replk_jax.vision.preprocessing import Preprocessing


class Prediction(NamedTuple):
    """A class that an image may be of.

    Attributes:
      index: of the class.
      name: of the class.
      score: its probability (softmax).
    """

    index: int
    name: str
    score: float


class Classifier(ImageProgram):
    """A network for images as they come: prepared, re-parameterized, compiled and in batches.

        classifier = replk_jax.Classifier.from_file("RepLKNet-31B_ImageNet-1K_224.pth")
        for predictions in classifier(["cat.jpg", "dog.jpg"]):
            print(predictions[0].name, predictions[0].score)

    Args:
      model: a classifier, in either structure.
      variables: of the model.
      preprocessing: of its images.
      class_names: one for each class. By default those of ImageNet-1K if there are 1,000
        classes, else their numbers.
      batch_size: the most images at once.

    Raises:
      ValueError: a model without a classifier, no preprocessing or one for another number of
        channels, or another number of names.
    """

    def __init__(
        self,
        model: Network,
        variables: Mapping[str, Any],
        preprocessing: Preprocessing | None,
        class_names: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ):
        if not (isinstance(model, Backbone) and model.has_classifier):
            raise ValueError("The network has no classifier; FeatureExtractor runs it.")
        if class_names is None:
            class_names = _default_names(model.num_classes)
        if len(class_names) != model.num_classes:
            raise ValueError(
                f"The network has {model.num_classes} classes; got {len(class_names)} names."
            )
        super().__init__(model, variables, preprocessing, batch_size, _logits)
        self.class_names = tuple(class_names)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        prefer_ema: bool = False,
        key: str | None = None,
        prefix: str | None = None,
        batch_size: int = 32,
    ) -> "Classifier":
        """Reads a classifier with its preprocessing and names.

        Args:
          path: what `load` takes: a PyTorch checkpoint, or what this package or a training run
            saved.
          preprocessing: in place of that of the file.
          class_names: in place of those of the file.
          prefer_ema: take the exponential moving average (EMA) that was saved with the weights.
          key, prefix: which weights of a PyTorch checkpoint; as in `load_torch`.
          batch_size: the most images at once.

        Raises:
          ValueError, OSError: a file that cannot be read, or holds no classifier.
        """
        network = load(
            path, prefer_ema=prefer_ema, preprocessing=preprocessing, key=key, prefix=prefix
        )
        with naming(path):
            return cls(
                network.model,
                network.variables,
                network.resolve_preprocessing(),
                network.class_names if class_names is None else class_names,
                batch_size=batch_size,
            )

    def __call__(self, images: Images, *, top_k: int = 5) -> list[list[Prediction]]:
        """The likeliest classes of each image, the likeliest first.

        Args:
          images: one, which counts as a list of one, or several: paths, images of Pillow, bytes
            of files, or uint8 arrays (H, W, C); or an array (N, H, W, C).
          top_k: how many; all, if there are not so many.

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        return self.best(self.logits(images), top_k)

    def logits(self, images: Images) -> np.ndarray:
        """The outputs of the network, float32 (N, classes), for images as `__call__` takes them.

        As they are: NaN or infinite where the network diverged or overflows.
        """
        return self.run_all(images)

    def probabilities(self, images: Images) -> np.ndarray:
        """Their softmax, float32 (N, classes).

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        return _probabilities(self.logits(images))

    def best(self, logits: np.ndarray, top_k: int = 5) -> list[list[Prediction]]:
        """The likeliest classes by logits (N, classes), the likeliest first.

        Raises:
          ValueError: logits that are NaN or infinite.
        """
        probabilities = _probabilities(logits)
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
        return [
            [Prediction(int(i), self.class_names[i], float(scores[i])) for i in best]
            for scores, best in zip(probabilities, order, strict=True)
        ]


def _logits(model: Network, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
    return model.apply(variables, images)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~finite_outputs(logits))
    if bad.size:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        raise ValueError(
            f"The logits of {bad.size} of {len(logits)} images are not finite (index {shown}): "
            "no class can be predicted. The weights may be of a run that diverged; `logits` "
            "returns the values."
        )
    return np.asarray(jax.nn.softmax(logits))


def _default_names(num_classes: int) -> Sequence[str]:
    if num_classes == len(imagenet.class_names()):
        return imagenet.class_names()
    return [str(index) for index in range(num_classes)]
