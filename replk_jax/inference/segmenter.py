"""Semantic segmentation of images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replk_jax.checkpoint import load
from replk_jax.inference.image_program import Images, prepare_ahead, several
from replk_jax.inference.segmentation_program import Segmentation, SegmentationProgram
from replk_jax.io.errors import naming
from replk_jax.models.network import Network
from replk_jax.segmentation.prediction import LARGEST_NUMBER_OF_CLASSES
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.label_sets import palette_of


class Segmenter(SegmentationProgram):
    """Segments images: prepares them, runs the compiled merged network, and resizes the result.

        segmenter = replk_jax.Segmenter.from_file("upernet_replknet_31b_ade20k.safetensors")
        for classes in segmenter(["street.jpg", "room.jpg"]):  # uint8, as large as each image
            names = [segmenter.class_names[index] for index in np.unique(classes)]

    The protocol says whether the network sees whole images or windows, and in which views.
    `SegmentationProgram` says how often it is compiled.

    Args:
      model: a segmentation network, in either structure.
      variables: of the model.
      protocol: of the test.
      class_names: one per class; by default the indices of the classes.
      palette: colours of the classes, uint8 (K, 3), for pictures; by default that of the data set
        with these class names, or else that of Pascal VOC.
      batch_size: the largest batch of windows or whole images.

    Raises:
      ValueError: another model, no protocol, one for another number of channels, more than 255
        classes, or a wrong number of names or colours.
    """

    def __init__(
        self,
        model: Network,
        variables: Mapping[str, Any],
        protocol: BasePreprocessing | None,
        class_names: Sequence[str] | None = None,
        palette: np.ndarray | None = None,
        *,
        batch_size: int = 8,
    ):
        network = require_segmenter(model)
        if protocol is not None and not isinstance(protocol, SegmentationProtocol):
            raise ValueError(
                f"Segmenter takes a SegmentationProtocol; got a {type(protocol).__name__}."
            )
        classes = network.num_classes or 0
        if classes > LARGEST_NUMBER_OF_CLASSES:
            raise ValueError(
                f"A class map has at most {LARGEST_NUMBER_OF_CLASSES} classes; the network has "
                f"{classes}."
            )
        if class_names is None:
            class_names = [str(index) for index in range(classes)]
        if len(class_names) != classes:
            raise ValueError(f"The network has {classes} classes; got {len(class_names)} names.")
        palette = palette_of(class_names) if palette is None else np.asarray(palette)
        if palette.shape != (classes, 3) or palette.dtype != np.uint8:
            raise ValueError(
                f"The palette of {classes} classes is uint8 ({classes}, 3); got {palette.dtype} "
                f"{palette.shape}."
            )
        super().__init__(network, variables, protocol, batch_size)
        self.class_names = tuple(class_names)
        self.palette = palette

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        protocol: SegmentationProtocol | None = None,
        like: str | None = None,
        class_names: Sequence[str] | None = None,
        palette: np.ndarray | None = None,
        prefer_ema: bool = False,
        key: str | None = None,
        prefix: str | None = None,
        batch_size: int = 8,
    ) -> "Segmenter":
        """Reads a segmentation network with its protocol and names.

        Args:
          path: of any checkpoint that `load` reads.
          protocol: replaces that of the file.
          like: a published checkpoint whose protocol replaces that of the file; as in `load`.
          class_names: replace those of the file.
          palette: as above.
          prefer_ema: read the exponential moving average (EMA) of the weights.
          key, prefix: select the weights in a PyTorch checkpoint; as in `load_torch`.
          batch_size: the largest batch of windows or whole images.

        Raises:
          ValueError, OSError: a file that cannot be read, or has no segmentation network.
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
            require_segmenter(network.model)
            return cls(
                network.model,
                network.variables,
                network.resolve_preprocessing(),
                network.class_names if class_names is None else class_names,
                palette,
                batch_size=batch_size,
            )

    def __call__(self, images: Images) -> list[np.ndarray]:
        """The class of each pixel of each image.

        Args:
          images: one, or several: paths, Pillow images, bytes of files, or uint8 arrays (H, W, C);
            or an array (N, H, W, C).

        Returns:
          For each image uint8 (H, W), as large as the image. Images are segmented upright: H and W
          are those after the EXIF orientation of a file or of an image of Pillow is applied.

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        return [result.classes for result in self._all(images, False)]

    def probabilities(self, images: Images) -> list[np.ndarray]:
        """The probabilities of the classes of each pixel, for images as in `__call__`.

        Returns:
          For each image float32 (H, W, K): 600 bytes per pixel with 150 classes.

        Raises:
          ImageError: an image that cannot be read.
          ValueError: logits that are NaN or infinite.
        """
        results = self._all(images, True)
        return [result.probabilities for result in results if result.probabilities is not None]

    def _all(self, images: Images, probabilities: bool) -> list[Segmentation]:
        results: list[Segmentation] = []
        for prepared in prepare_ahead(self.prepare, several(images), self.batch_size):
            results += self.segment(prepared, probabilities=probabilities)
        bad = [index for index, result in enumerate(results) if not result.is_finite]
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise ValueError(
                f"The logits of {len(bad)} of {len(results)} images are not finite (index {shown}):"
                " no class can be predicted. The training run may have diverged."
            )
        return results


def require_segmenter(model: Network) -> SegmentationNetwork:
    """The model, if it is a segmentation network.

    Raises:
      ValueError: another network.
    """
    if not isinstance(model, SegmentationNetwork):
        raise ValueError(
            f"Segmenter takes a segmentation network; got a {type(model).__name__}. Classifier "
            "runs classifiers (python -m replk_jax predict)."
        )
    return model
