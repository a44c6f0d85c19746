"""Detection of objects in images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from replk_jax.checkpoint import load
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.inference.detection_program import DetectionProgram, Objects
from replk_jax.inference.image_program import Images, prepare_ahead, several
from replk_jax.io.errors import naming
from replk_jax.models.network import Network
from replk_jax.vision.base_preprocessing import BasePreprocessing


class Detected(NamedTuple):
    """The objects found in an image, the most confident first.

    Attributes:
      boxes: float32 (M, 4): x1, y1, x2, y2 in pixels of the image, after the EXIF orientation of a
        file or of an image of Pillow is applied.
      scores: float32 (M,), between 0 and 1.
      classes: int32 (M,).
      names: of the classes of the objects, M of them.
      masks: the pixels of the objects, bool (M, H, W); None unless asked for.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    masks: np.ndarray | None


class Detector(DetectionProgram):
    """Finds objects in images: prepares them, and runs the compiled merged network.

        detector = replk_jax.Detector.from_file("fcos_replknet_31b_coco.safetensors")
        for found in detector(["street.jpg", "room.jpg"], threshold=0.3):
            for box, score, name in zip(found.boxes, found.scores, found.names):
                ...

    `DetectionProgram` says how often it is compiled.

    Args:
      model: a detection network, in either structure.
      variables: of the model.
      protocol: its preprocessing.
      class_names: one per class; by default the indices of the classes.
      batch_size: the largest batch of images.

    Raises:
      ValueError: another model, no protocol, one for another number of channels, or a wrong number
        of names.
    """

    def __init__(
        self,
        model: Network,
        variables: Mapping[str, Any],
        protocol: BasePreprocessing | None,
        class_names: Sequence[str] | None = None,
        *,
        batch_size: int = 4,
    ):
        network = require_detector(model)
        if protocol is not None and not isinstance(protocol, DetectionProtocol):
            raise ValueError(
                f"Detector takes a DetectionProtocol; got a {type(protocol).__name__}."
            )
        classes = network.num_classes or 0
        if class_names is None:
            class_names = [str(index) for index in range(classes)]
        if len(class_names) != classes:
            raise ValueError(f"The network has {classes} classes; got {len(class_names)} names.")
        super().__init__(network, variables, protocol, batch_size)
        self.class_names = tuple(class_names)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        protocol: DetectionProtocol | None = None,
        like: str | None = None,
        class_names: Sequence[str] | None = None,
        prefer_ema: bool = False,
        key: str | None = None,
        prefix: str | None = None,
        batch_size: int = 4,
    ) -> "Detector":
        """Reads a detection network with its preprocessing and names.

        Args:
          path: of any checkpoint that `load` reads.
          protocol: replaces that of the file.
          like: a published checkpoint whose preprocessing replaces that of the file; as in `load`.
          class_names: replace those of the file.
          prefer_ema: read the exponential moving average (EMA) of the weights.
          key, prefix: select the weights in a PyTorch checkpoint; as in `load_torch`.
          batch_size: the largest batch of images.

        Raises:
          ValueError, OSError: a file that cannot be read, or has no detection network.
        """
        network = load(
            path,
            prefer_ema=prefer_ema,
            preprocessing=protocol,
            like=like,
            key=key,
            prefix=prefix,
        )
        with naming(path):
            require_detector(network.model)
            return cls(
                network.model,
                network.variables,
                network.resolve_preprocessing(),
                network.class_names if class_names is None else class_names,
                batch_size=batch_size,
            )

    def __call__(
        self, images: Images, *, threshold: float = 0.0, masks: bool = False
    ) -> list[Detected]:
        """The objects in each image.

        Args:
          images: one, or several: paths, Pillow images, bytes of files, or uint8 arrays (H, W, C);
            or an array (N, H, W, C).
          threshold: objects have higher scores. The network itself leaves out those below its
            `score_threshold`.
          masks: whether to return the pixels of each object: M x H x W bytes per image.

        Raises:
          ImageError: an image that cannot be read.
          ValueError: masks of a network without them, or values that are NaN or infinite.
        """
        results: list[Detected] = []
        bad: list[int] = []
        for prepared in prepare_ahead(self.prepare, several(images), self.batch_size):
            for objects in self.detect(prepared):
                if not objects.is_finite:
                    bad.append(len(results))
                results.append(self._detected(objects.above(threshold), masks))
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise ValueError(
                f"The network's values are not finite for {len(bad)} of {len(results)} images "
                f"(index {shown}): no objects can be found. The training run may have diverged."
            )
        return results

    def _detected(self, objects: Objects, masks: bool) -> Detected:
        names = tuple(self.class_names[index] for index in objects.classes)
        pixels = None
        if masks:
            pixels = np.zeros((len(names), *objects.size), bool)
            for mask, pasted in zip(pixels, objects.masks(), strict=True):
                mask[:] = pasted
        # Copies, since the arrays are parts of those of a whole batch.
        arrays = (objects.boxes.copy(), objects.scores.copy(), objects.classes.copy())
        return Detected(*arrays, names, pixels)


def require_detector(model: Network) -> DetectionNetwork:
    """The model, if it is a detection network.

    Raises:
      ValueError: another network.
    """
    if not isinstance(model, DetectionNetwork):
        raise ValueError(
            f"Detector takes a detection network; got a {type(model).__name__}. Classifier runs "
            "classifiers (python -m replk_jax predict), Segmenter segmentation networks "
            "(python -m replk_jax segment)."
        )
    return model
