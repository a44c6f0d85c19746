"""Evaluation of segmentation at the original sizes of the images, in batches of one shape.

Images are grouped by the shapes of their arrays, which are known from the sizes of the images; see
`train.data.grouped_batches`.
"""

import concurrent.futures
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import jax
import numpy as np
from PIL import Image

from replk_jax.io.text import escaped
from replk_jax.segmentation.prediction import Size, Windows, place_windows, score_matrices
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.vision.images import ImageError, image_error
from replk_jax.vision.keep_ratio import ratio_limits, size_within
from replk_jax.vision.label_sets import IGNORED, LabelSet
from train.data import pipeline
from train.data.grouped_batches import grouped_batches
from train.data.masks import decode_pair
from train.data.pipeline import Example
from train.data.segmentation_sources import SegmentationSource
from train.data.splits import Reading
from train.errors import RunError
from train.reporting.console import say
from train.reporting.unreadable import Report, reported

_MANY_PROGRAMS = 50
_THREADS = 8  # that read the sizes of the images


class Shapes(NamedTuple):
    """What the shapes of the arrays of an image depend on.

    Attributes:
      windows: for each ratio of the protocol, size and grid of the windows.
      padded: (height, width) of the padded labels.
    """

    windows: tuple[tuple[Size, Size], ...]
    padded: Size


@dataclasses.dataclass(frozen=True)
class ProtocolTransform:
    """Prepares an image and its labels for a test at its original size.

    Attributes:
      protocol: of the test.
      label_set: of the masks.
      stride: of the logits: they have the size of the windows over it, rounded up.
      align_corners: of the network.
      with_image: whether to return the image too, for pictures.
    """

    protocol: SegmentationProtocol
    label_set: LabelSet
    stride: int
    align_corners: bool
    with_image: bool = False

    def map(self, example: Example) -> Example:
        """Transforms an example of a `SegmentationSource` of H x W pixels.

        Returns:
          For each ratio i of the protocol, with n windows of h x w pixels and F views (2 with a
          flip, otherwise 1): `windows_i`, uint8 (F, n, h, w, 3), of the resized image; and
          `rows_i`, float32 (P, .), and `columns_i`, float32 (F, Q, .), see `score_matrices`. Also
          `label`, uint8 (P, Q), padded with `IGNORED`; P and Q are from `shapes`. With
          `with_image`, `image`, uint8 (P, Q, 3), padded with 0, and `size`, int32 (2,), H and W.

        Raises:
          ImageError: see `train.data.masks.decode_pair`.
        """
        cv2.setNumThreads(0)
        image, mask = decode_pair(example, self.label_set)
        size = height, width = mask.shape
        padded = self.shapes(size).padded
        result: Example = {"label": np.full(padded, IGNORED, np.uint8)}
        result["label"][:height, :width] = mask
        for i, (ratio, windows) in enumerate(self._windows(size)):
            resized = self._resized(image, ratio)
            images = [resized, resized[:, ::-1]] if self.protocol.flip else [resized]
            rows, columns = self._matrices(size, windows, resized.shape[:2])
            result |= {
                f"windows_{i}": np.stack([windows.cut(image) for image in images]),
                f"rows_{i}": rows,
                f"columns_{i}": columns,
            }
        if self.with_image:
            result["image"] = np.zeros((*padded, 3), np.uint8)
            result["image"][:height, :width] = image
            result["size"] = np.array(size, np.int32)
        return result

    def blank(self, size: Size) -> Example:
        """The arrays of an image of a size (H, W), without pixels or labels."""
        shapes = self.shapes(size)
        result: Example = {"label": np.full(shapes.padded, IGNORED, np.uint8)}
        for i, (ratio, windows) in enumerate(self._windows(size)):
            views, resized = 1 + self.protocol.flip, self.protocol.resized_size(*size, ratio)
            rows, columns = self._matrices(size, windows, resized)
            result |= {
                f"windows_{i}": np.zeros((views, windows.count, *windows.size, 3), np.uint8),
                f"rows_{i}": rows,
                f"columns_{i}": columns,
            }
        if self.with_image:
            result["image"] = np.zeros((*shapes.padded, 3), np.uint8)
            result["size"] = np.array(size, np.int32)
        return result

    def shapes(self, size: Size) -> Shapes:
        """What the shapes of the arrays of an image of a size (H, W) depend on.

        Labels are padded to the size that all windows at the first ratio cover, times 1, 2, 4, ...:
        so there are few sizes for each grid of windows.
        """
        windows = [windows for _, windows in self._windows(size)]
        seen = [
            side + (count - 1) * (self.protocol.stride or 0)
            for side, count in zip(windows[0].size, windows[0].grid, strict=True)
        ]
        factor = max(-(-side // part) for side, part in zip(size, seen, strict=True))
        height, width = (part * (1 << (factor - 1).bit_length()) for part in seen)
        return Shapes(tuple((some.size, some.grid) for some in windows), (height, width))

    def _windows(self, size: Size) -> Iterator[tuple[float, Windows]]:
        """The ratios of the protocol, and the windows of an image of a size (H, W)."""
        protocol = self.protocol
        for ratio in protocol.ratios:
            resized = protocol.resized_size(*size, ratio)
            yield ratio, place_windows(resized, protocol.window, protocol.stride or 0)

    def _resized(self, image: np.ndarray, ratio: float) -> np.ndarray:
        """As `KeepRatio.resized_pixels`, by OpenCV."""
        height, width = image.shape[:2]
        limits = ratio_limits(self.protocol.limits, ratio)
        for rows, columns in (
            size_within(height, width, limits),
            self.protocol.resized_size(height, width, ratio),
        ):
            if image.shape[:2] != (rows, columns):
                image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        return image

    def _matrices(
        self, size: Size, windows: Windows, resized: Size
    ) -> tuple[np.ndarray, np.ndarray]:
        """The matrices of the rows (P, .), and of the columns in each view (F, Q, .)."""
        return _score_matrices(
            windows, self.stride, resized, size, self.align_corners, self.protocol.flip,
            self.shapes(size).padded,
        )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _score_matrices(
    windows: Windows,
    stride: int,
    resized: Size,
    size: Size,
    align_corners: bool,
    flip: bool,
    padded: Size,
) -> tuple[np.ndarray, np.ndarray]:
    height, width = windows.size
    logits_size = -(-height // stride), -(-width // stride)
    pairs = [
        score_matrices(
            windows, logits_size, resized, size, align_corners, flipped=flipped, padded_size=padded
        )
        for flipped in ([False, True] if flip else [False])
    ]
    return pairs[0][0], np.stack([columns for _, columns in pairs])


class SizedEvaluation:
    """Examples to evaluate a segmentation network on, at their original sizes.

    Args:
      source: the examples.
      transform: of each example.
      batch_size: of all processes.
      reading: options.
      count: number of examples to use, from those with the most frequent shapes; None for all.
    """

    def __init__(
        self,
        source: SegmentationSource,
        transform: ProtocolTransform,
        *,
        batch_size: int,
        reading: Reading,
        count: int | None = None,
    ):
        self._source, self._transform, self._reading = source, transform, reading
        self._batch_size, self._count = batch_size, count

    def batches(self, report: Report) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that have every example once.

        All arrays of a batch have one shape; see `ProtocolTransform.map`. `mask`, bool (N,), is
        False for padding and for images that cannot be read.

        Args:
          report: called with a message for each image that cannot be read.

        Raises:
          RunError: an image cannot be read, and `reading` does not replace it.
        """
        for message in self._read_sizes[1]:
            report(message)
        batches = grouped_batches(
            self._source,
            self._transform,
            self.groups().values(),
            self._read_sizes[0],
            self._batch_size,
            self._reading,
        )
        return reported(batches, report)

    def groups(self) -> Mapping[Shapes, list[int]]:
        """The positions of the examples by the shapes of their arrays, the most frequent first.

        A program is compiled for each.

        Raises:
          RunError: a mask cannot be read, and `reading` does not leave it out.
        """
        groups: dict[Shapes, list[int]] = {}
        for index, size in self._read_sizes[0].items():
            groups.setdefault(self._transform.shapes(size), []).append(index)
        order = sorted(groups, key=lambda shapes: (-len(groups[shapes]), shapes))
        groups = {shapes: groups[shapes] for shapes in order}
        if self._count is None:
            return groups
        return {order[0]: groups[order[0]][: self._count]}

    def _say_programs(self, sizes: set[Size]) -> None:
        """Says how many programs an evaluation needs, if they are many."""
        shapes = {self._transform.shapes(size) for size in sizes}
        if len(shapes) > _MANY_PROGRAMS and jax.process_index() == 0:
            say(
                f"The images to evaluate on have {len({some.windows for some in shapes})} sizes "
                f"for the network, and {len(shapes)} with their padded labels: a program is "
                "compiled for each. With --config.test.multiple=32 there are fewer, and other "
                "scores."
            )

    @functools.cached_property
    def _read_sizes(self) -> tuple[dict[int, Size], list[str]]:
        """The size of each mask by position, and the messages for masks that cannot be read."""

        def size_of(index: int) -> Size | ImageError:
            try:
                return _mask_size(self._source[index])
            except ImageError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            results = list(pool.map(size_of, range(len(self._source))))
        errors = [result for result in results if isinstance(result, ImageError)]
        if errors and not self._reading.replace:
            raise pipeline.unreadable_error(errors[0]) from errors[0]
        if len(errors) == len(results):
            raise RunError(f"None of the masks to evaluate on can be read. The last: {errors[-1]}")
        sizes = {i: size for i, size in enumerate(results) if not isinstance(size, ImageError)}
        self._say_programs(set(sizes.values()))
        return sizes, [escaped(str(error)) for error in errors]


def _mask_size(example: Example) -> Size:
    """(height, width) of the mask of an example, from the header of its file."""
    try:
        with Image.open(io.BytesIO(example["mask"])) as image:
            return image.height, image.width
    except Exception as error:  # Pillow raises all kinds of errors
        raise image_error(example["mask_origin"], error) from error
