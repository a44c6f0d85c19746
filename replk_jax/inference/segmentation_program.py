"""From images to class maps: the network in batches, and its logits at the size of each image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.inference.bounded_jit import BoundedJit
from replk_jax.inference.image_program import ImageProgram, padded_count
from replk_jax.models.network import Network
from replk_jax.segmentation.prediction import (
    Size,
    View,
    class_maps,
    class_probabilities,
    finite_logits,
    score_matrices,
    side_by_side,
)
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.vision.images import ImageLike, read_image

_BUCKET = 64  # pixels
_KEPT_PROGRAMS = 32

# The logits of the windows of some images in batches, and the matrices of the images.
_Parts = tuple[Sequence[jax.Array], np.ndarray | jax.Array, np.ndarray | jax.Array]


class PreparedImage(NamedTuple):
    """An image, ready for the network.

    Attributes:
      size: (H, W) of the upright image.
      scales: the image resized for each ratio of the protocol, uint8 (H', W', C).
    """

    size: Size
    scales: tuple[np.ndarray, ...]


class Segmentation(NamedTuple):
    """The result for an image.

    Attributes:
      classes: the class of each pixel, uint8 (H, W).
      probabilities: of the classes, float32 (H, W, K); None unless asked for.
      is_finite: whether all logits are finite. If not, the other fields mean nothing.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None
    is_finite: bool


class SegmentationProgram(ImageProgram):
    """A compiled segmentation network with the steps of its test protocol.

    The network is compiled for each size of what it sees, and for each batch size up to
    `batch_size` that is a power of two: windows have one size, except of images with a side shorter
    than the window; whole images have as many sizes as the resized images have, which a protocol
    with `multiple=32` reduces. The step from logits to classes is compiled, in much less time, for
    each combination of that size, the grid of windows, the batch size, and the size of the original
    images in steps of 64 pixels. Of both, the programs of the last 32 shapes are kept.

    Args:
      network: in either structure.
      variables: of the network.
      protocol: of the test.
      batch_size: the largest batch of windows or whole images.

    Raises:
      ValueError: no protocol, or one for another number of channels; or a `batch_size` below 1.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        variables: Mapping[str, Any],
        protocol: SegmentationProtocol | None,
        batch_size: int,
    ):
        super().__init__(network, variables, protocol, batch_size, _logits)
        assert protocol is not None  # the base class raises ValueError
        self.protocol = protocol
        self._align_corners = network.align_corners
        self._classes = BoundedJit(_predicted(class_maps), _KEPT_PROGRAMS)
        self._probabilities = BoundedJit(_predicted(_classes_and_probabilities), _KEPT_PROGRAMS)

    def prepare(self, image: ImageLike, name: str | None = None) -> PreparedImage:
        """Reads an image and resizes it as the protocol says.

        Args:
          image: as `read_image` takes it.
          name: what errors call it.

        Raises:
          ImageError: an image that cannot be read, or is far too long.
        """
        decoded = read_image(image, self.protocol.channels, name, upright=True)
        return PreparedImage((decoded.height, decoded.width), self.protocol.scales(decoded, name))

    def segment(
        self, images: Sequence[PreparedImage], *, probabilities: bool = False
    ) -> list[Segmentation]:
        """Segments prepared images, those of one geometry together.

        Args:
          images: from `prepare`.
          probabilities: whether to return those too.

        Returns:
          The results, in the order of the images.
        """
        alike: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            windows = [self.protocol.windows(_size(scale)) for scale in image.scales]
            geometry = _padded_size(image.size), *((w.size, w.grid) for w in windows)
            alike.setdefault(geometry, []).append(index)
        results = {}
        for (_, *grids), indices in alike.items():
            most = self._images_per_batch(max(rows * columns for _, (rows, columns) in grids))
            for start in range(0, len(indices), most):
                some = indices[start : start + most]
                batch = [images[index] for index in some]
                results |= zip(some, self._segment_alike(batch, most, probabilities), strict=True)
        return [results[index] for index in range(len(images))]

    def _images_per_batch(self, windows: int) -> int:
        """How many images with some number of windows fit into a batch; at least one."""
        return max(1, self.batch_size // windows)

    def _segment_alike(
        self, images: Sequence[PreparedImage], most: int, probabilities: bool
    ) -> Iterator[Segmentation]:
        """The results for at most `most` images with the same grids and the same padded size."""
        count = padded_count(len(images), most)
        views = [
            self._view(images, self.protocol.ratios.index(ratio), flipped, count)
            for ratio, flipped in self.protocol.views
        ]
        predict = self._probabilities if probabilities else self._classes
        finite, outputs = jax.device_get(predict(views))
        classes, scores = outputs if probabilities else (outputs, None)
        for i, image in enumerate(images):
            height, width = image.size
            yield Segmentation(
                classes[i, :height, :width],
                None if scores is None else scores[i, :height, :width],
                bool(finite[i]),
            )

    def _view(
        self, images: Sequence[PreparedImage], scale: int, flipped: bool, count: int
    ) -> _Parts:
        """The batches of logits of a view, and the matrices of `count` images.

        Those beyond the images given are black, with matrices of zeros.
        """
        cut, placed = [], []
        for image in images:
            pixels = image.scales[scale]
            windows = self.protocol.windows(_size(pixels))
            placed.append((windows, pixels, image.size))
            cut.append(windows.cut(pixels[:, ::-1] if flipped else pixels))
        cut += [np.zeros_like(cut[0])] * (count - len(images))
        pixels = np.concatenate(cut)
        size = self.batch_size
        logits = [
            self.run_padded(pixels[start : start + size]) for start in range(0, len(pixels), size)
        ]
        logits_size = logits[0].shape[1:3]
        matrices = [
            score_matrices(
                windows,
                logits_size,
                _size(pixels),
                original,
                self._align_corners,
                flipped=flipped,
                padded_size=_padded_size(original),
            )
            for windows, pixels, original in placed
        ]
        rows, columns = (_stacked(axis, count) for axis in zip(*matrices, strict=True))
        return logits, rows, columns


def _logits(model: Network, variables: Mapping[str, Any], images: jax.Array) -> Any:
    """Maps (N, H, W, C) to (N, h, w, K)."""
    return model.apply(variables, images)


def _predicted(predict: Callable[[Sequence[View]], Any]) -> Callable[[Sequence[_Parts]], Any]:
    """A function of views in parts: whether their logits are finite, and what is predicted."""

    def program(parts: Sequence[_Parts]) -> Any:
        views = []
        for batches, rows, columns in parts:
            height, width = batches[0].shape[1:3]
            grid = rows.shape[2] // height, columns.shape[2] // width
            logits = jnp.concatenate(batches)[: rows.shape[0] * grid[0] * grid[1]]
            views.append(View(side_by_side(logits, grid), rows, columns))
        return finite_logits(views), predict(views)

    return program


def _classes_and_probabilities(views: Sequence[View]) -> tuple[jax.Array, jax.Array]:
    return class_maps(views), class_probabilities(views)


def _stacked(matrices: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stacks matrices, and zeros up to `count`."""
    padding = [(0, count - len(matrices)), (0, 0), (0, 0)]
    return np.pad(np.stack(matrices), padding)


def _size(pixels: np.ndarray) -> Size:
    height, width, _ = pixels.shape
    return height, width


def _padded_size(size: Size) -> Size:
    height, width = (-(-side // _BUCKET) * _BUCKET for side in size)
    return height, width
