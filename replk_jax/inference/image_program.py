"""Compiled networks for images, in batches of few different shapes."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, TypeVar

import jax
import numpy as np
from PIL import Image

from replk_jax.detection.network import DetectionNetwork
from replk_jax.inference.bounded_jit import BoundedJit
from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.reparam import for_inference
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.vision.base_preprocessing import BasePreprocessing, normalize
from replk_jax.vision.images import ImageLike

Images = ImageLike | Sequence[ImageLike]

Item = TypeVar("Item")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=Network)

_KEPT_PROGRAMS = 32


class ImageProgram:
    """A compiled function of images: normalisation, and the merged network.

    It is compiled for each shape of a batch. The programs of the last 32 shapes are kept.

    Args:
      model: the network, in either structure.
      variables: of the model.
      preprocessing: of the images.
      batch_size: the largest batch. Smaller ones are padded to a power of two, which bounds the
        number of compiled shapes.
      compute: maps the model, its variables, normalised images and what else `run_padded` is given
        to a tree of arrays (N, ...). The model is merged, if possible.

    Raises:
      ValueError: no preprocessing, or one for another number of channels; or a `batch_size` below
        1.
    """

    def __init__(
        self,
        model: Model,
        variables: Mapping[str, Any],
        preprocessing: BasePreprocessing | None,
        batch_size: int,
        compute: Callable[Concatenate[Model, Mapping[str, Any], jax.Array, ...], Any],
    ):
        channels = model.in_channels
        if preprocessing is None:
            raise ValueError("The preprocessing is unknown: give one.")
        if preprocessing.channels != channels:
            raise ValueError(
                f"The network takes images of {channels} channels; the preprocessing is for "
                f"{preprocessing.channels}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        model, variables = for_inference(model, variables)

        def program(variables: Mapping[str, Any], pixels: jax.Array, *others: jax.Array) -> Any:
            images = normalize(pixels, preprocessing.mean, preprocessing.std)
            return compute(model, variables, images, *others)

        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self._variables = jax.device_put(variables)
        self._program = BoundedJit(program, _KEPT_PROGRAMS)

    def run(self, pixels: np.ndarray, *others: np.ndarray) -> Any:
        """Computes one batch of prepared images.

        Args:
          pixels: uint8 (N, H, W, C), before normalisation; N is at most `batch_size`.
          others: arrays (N, ...) for `compute`.

        Returns:
          A tree of NumPy arrays (N, ...).

        Raises:
          ValueError: more than one batch.
        """
        outputs = jax.device_get(self.run_padded(pixels, *others))
        return jax.tree.map(lambda output: output[: len(pixels)], outputs)

    def run_padded(self, pixels: np.ndarray, *others: np.ndarray) -> Any:
        """As `run`, but the arrays stay on the device, and can have more than N entries."""
        count = len(pixels)
        if count > self.batch_size:
            raise ValueError(f"A batch has at most {self.batch_size} images; got {count}.")
        missing = padded_count(count, self.batch_size) - count
        images = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)])
        # Repeated, since not every number makes sense as a size.
        padded = (np.concatenate([array, array[-1:].repeat(missing, 0)]) for array in others)
        return self._program(self._variables, images, *padded)


class OneSizeProgram(ImageProgram):
    """An `ImageProgram` whose preprocessing gives all images one size.

    Args:
      model, variables, preprocessing, batch_size, compute: see `ImageProgram`.

    Raises:
      ValueError: a preprocessing without one image size; others as `ImageProgram`.
    """

    def __init__(
        self,
        model: Model,
        variables: Mapping[str, Any],
        preprocessing: BasePreprocessing | None,
        batch_size: int,
        compute: Callable[[Model, Mapping[str, Any], jax.Array], Any],
    ):
        super().__init__(model, variables, preprocessing, batch_size, compute)
        size = self.preprocessing.size
        if size is None:
            raise ValueError(
                "The preprocessing gives each image a size of its own; batches need one size."
            )
        self._size = size

    def run_all(self, images: Images) -> Any:
        """Prepares and computes any number of images.

        Args:
          images: one, or several: paths, Pillow images, bytes of files, or uint8 arrays (see
            `read_image`); or an array (N, H, W, C).

        Returns:
          A tree of NumPy arrays (N, ...), in the order of the images.

        Raises:
          ImageError: an image that cannot be read.
        """
        prepared = prepare_ahead(self.preprocessing.pixels, several(images), self.batch_size)
        parts = [self.run(np.stack(pixels)) for pixels in prepared]
        if not parts:
            empty = (0, *self._size, self.preprocessing.channels)
            parts = [self.run(np.empty(empty, np.uint8))]
        return jax.tree.map(lambda *outputs: np.concatenate(outputs), *parts)


def require_backbone(model: Network, wanted: str) -> Backbone:
    """The model, if it is a classifier or a backbone.

    Args:
      model: any network.
      wanted: what takes what, for the error.

    Raises:
      ValueError: a composite network.
    """
    if isinstance(model, Backbone):
        return model
    kind = type(model).__name__
    hint = ""
    if isinstance(model, SegmentationNetwork):
        hint = " Segmenter runs it (python -m replk_jax segment)."
    if isinstance(model, DetectionNetwork):
        hint = " Detector runs it (python -m replk_jax detect)."
    raise ValueError(f"{wanted}; got a {kind}.{hint}")


def padded_count(count: int, most: int) -> int:
    """The length that a batch of `count` is padded to: a power of two, or at the end `most`."""
    return min(most, 1 << (count - 1).bit_length())


def finite_outputs(outputs: Any) -> np.ndarray:
    """Whether all outputs of an image are finite, for each image.

    Args:
      outputs: a tree of arrays (N, ...), as from `ImageProgram.run`.

    Returns:
      bool (N,).
    """
    leaves = jax.tree.leaves(outputs)
    return np.all([np.isfinite(leaf).all(tuple(range(1, leaf.ndim))) for leaf in leaves], axis=0)


def prepare_ahead(
    prepare: Callable[[Item], Result], items: Sequence[Item], batch_size: int
) -> Iterator[list[Result]]:
    """Applies a function in threads, and prepares one batch ahead of the consumer.

    Args:
      prepare: maps an item to a result.
      items: what to prepare.
      batch_size: length of each list but the last.
    """
    with ThreadPoolExecutor() as threads:
        ahead = []
        for start in range(0, len(items), batch_size):
            ready = ahead
            ahead = [threads.submit(prepare, item) for item in items[start : start + batch_size]]
            if ready:
                yield [future.result() for future in ready]
        if ahead:
            yield [future.result() for future in ahead]


def several(images: Images) -> Sequence[ImageLike]:
    """One image as a list of one."""
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return [images]
    if hasattr(images, "ndim"):
        array = np.asarray(images)
        return list(array) if array.ndim == 4 else [array]
    return list(images)
