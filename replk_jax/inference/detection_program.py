"""From images to objects: the network in batches of few shapes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.pasting import paste_mask
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.structures import Detections
from replk_jax.inference.image_program import ImageProgram
from replk_jax.vision.images import ImageLike, read_image
from replk_jax.vision.padding import blank_padding

Size = tuple[int, int]  # (height, width) in pixels


class PreparedImage(NamedTuple):
    """An image, ready for the network.

    Attributes:
      size: (H, W) of the upright image.
      pixels: the image resized, uint8 (H', W', C).
    """

    size: Size
    pixels: np.ndarray


class Objects(NamedTuple):
    """The objects found in an image, the most confident first.

    Attributes:
      size: (H, W) of the upright image.
      boxes: float32 (M, 4): x1, y1, x2, y2 in pixels of the image.
      scores: float32 (M,), between 0 and 1.
      classes: int32 (M,).
      cells: float32 (M, h, w), the probability that the object covers each cell of a grid over its
        box; None of a network without masks.
      is_finite: whether the features and the weights of the heads are finite. If not, the other
        fields mean nothing.
    """

    size: Size
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    cells: np.ndarray | None
    is_finite: bool

    def above(self, threshold: float) -> "Objects":
        """The objects with higher scores."""
        count = int(np.count_nonzero(self.scores > threshold))
        cells = None if self.cells is None else self.cells[:count]
        return self._replace(
            boxes=self.boxes[:count],
            scores=self.scores[:count],
            classes=self.classes[:count],
            cells=cells,
        )

    def masks(self) -> Iterator[np.ndarray]:
        """The pixels of each object in turn, bool (H, W).

        Raises:
          ValueError: the network has no masks.
        """
        if self.cells is None:
            raise ValueError("This network finds boxes without masks.")
        for cells, box in zip(self.cells, self.boxes, strict=True):
            yield paste_mask(cells, box, self.size)


class DetectionProgram(ImageProgram):
    """A compiled detector with its preprocessing.

    Images are padded to one of two shapes (`DetectionProtocol.buckets`), for wide and for high
    ones. The network is compiled for each of them and for each batch size up to `batch_size` that
    is a power of two.

    Args:
      network: in either structure.
      variables: of the network.
      protocol: its preprocessing.
      batch_size: the largest batch.

    Raises:
      ValueError: no protocol, or one for another number of channels; or a `batch_size` below 1.
    """

    def __init__(
        self,
        network: DetectionNetwork,
        variables: Mapping[str, Any],
        protocol: DetectionProtocol | None,
        batch_size: int,
    ):
        super().__init__(network, variables, protocol, batch_size, _detect)
        assert protocol is not None  # the base class raises ValueError
        self.protocol = protocol

    def prepare(self, image: ImageLike, name: str | None = None) -> PreparedImage:
        """Reads an image and resizes it as the protocol says.

        Args:
          image: as `read_image` takes it.
          name: what errors call it.

        Raises:
          ImageError: an image that cannot be read, or is far too long.
        """
        decoded = read_image(image, self.protocol.channels, name, upright=True)
        pixels = self.protocol.pixels(decoded, name)
        return PreparedImage((decoded.height, decoded.width), pixels)

    def detect(self, images: Sequence[PreparedImage]) -> list[Objects]:
        """Finds the objects in prepared images, wide and high ones in separate batches.

        Args:
          images: from `prepare`.

        Returns:
          The results, in the order of the images.
        """
        alike: dict[Size, list[int]] = {}
        for index, image in enumerate(images):
            alike.setdefault(self._bucket(image), []).append(index)
        results: dict[int, Objects] = {}
        for bucket, indices in alike.items():
            for start in range(0, len(indices), self.batch_size):
                some = indices[start : start + self.batch_size]
                found = self._detect_alike([images[index] for index in some], bucket)
                results |= zip(some, found, strict=True)
        return [results[index] for index in range(len(images))]

    def _bucket(self, image: PreparedImage) -> Size:
        """The shape that holds a resized image."""
        height, width, _ = image.pixels.shape
        return next(b for b in self.protocol.buckets if height <= b[0] and width <= b[1])

    def _detect_alike(self, images: Sequence[PreparedImage], bucket: Size) -> Iterator[Objects]:
        """The results for a batch of images, padded to one shape."""
        pixels = np.zeros((len(images), *bucket, self.protocol.channels), np.uint8)
        sizes = np.array([image.pixels.shape[:2] for image in images], np.int32)
        for padded, image in zip(pixels, images, strict=True):
            height, width, _ = image.pixels.shape
            padded[:height, :width] = image.pixels
        scales = np.stack([self.protocol.scale_factors(*image.size) for image in images])
        detections, finite = self.run(pixels, sizes, scales)
        for i, image in enumerate(images):
            count = int(detections.count[i])
            yield Objects(
                image.size,
                detections.boxes[i, :count],
                detections.scores[i, :count],
                detections.classes[i, :count],
                None if detections.masks is None else detections.masks[i, :count],
                bool(finite[i]),
            )


def _detect(
    model: DetectionNetwork,
    variables: Mapping[str, Any],
    images: jax.Array,
    sizes: jax.Array,
    scales: jax.Array,
) -> tuple[Detections, jax.Array]:
    """The detections, and for each image whether its features and all weights of heads are finite.

    Detections would not show it: objects with scores that are NaN are not found.
    """

    def detect(network: DetectionNetwork, x: jax.Array) -> tuple[Detections, jax.Array]:
        pyramid = network.pyramid(x, train=False)
        maps = [jnp.isfinite(feature_map).all((1, 2, 3)) for feature_map in pyramid]
        found = network.detect(pyramid, sizes.astype(jnp.float32), scales)
        return found, jnp.all(jnp.stack(maps), axis=0)

    outputs = model.apply(variables, blank_padding(images, sizes), method=detect)
    found, finite = cast("tuple[Detections, jax.Array]", outputs)
    heads = [
        {name: part for name, part in tree.items() if name != "backbone"}
        for tree in variables.values()
    ]
    weights = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(heads)]
    return found, finite & jnp.all(jnp.stack(weights))
