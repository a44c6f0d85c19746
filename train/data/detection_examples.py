"""Examples of a detection data set, and the rules of which images and objects are trained on."""

from typing import Self

import numpy as np

from train.data.annotated_images import DetectionSource
from train.data.pipeline import Example
from train.errors import RunError
from train.reporting.console import warn

_SMALLEST_SIDE = 32  # of an image to train on, in pixels


class DetectionExamples:
    """Images of a split with some of their objects.

    An example has `image`, encoded bytes; `origin`, what errors call it; `size`, (H, W) of the
    upright image; `image_id`, int32 (); `boxes`, float32 (n, 4), x1, y1, x2, y2 in its pixels;
    `classes`, int32 (n,); and
    `masks`, the `InstanceMasks` of the image, with `numbers`, int32 (n,), of the objects in them,
    where masks are asked for.

    Args:
      source: the split.
      images: the positions of the images, in order.
      objects: bool (A,), which of all objects are wanted.
      masks: whether masks are asked for.

    Attributes:
      table: of the images and objects.

    Raises:
      RunError: there are no images; or masks are asked for, and there are none.
    """

    def __init__(
        self, source: DetectionSource, images: np.ndarray, objects: np.ndarray, masks: bool
    ):
        if masks and not source.has_masks:
            raise RunError("The data set has no masks of objects: set config.data.masks=False.")
        if not len(images):
            raise RunError("The data set has no images that can be used.")
        self._source, self._images, self._masks = source, images, masks
        self.table = source.table.select(images, objects)

    @classmethod
    def to_train_on(
        cls, source: DetectionSource, *, filter_empty: bool, masks: bool, max_objects: int
    ) -> Self:
        """The images to train on, with the objects to find.

        As by mmdetection: objects are left out that the data set asks to ignore, that are outside
        the image, have no area, or are less than a pixel wide or high; and so are crowds, which
        train as background. Images with a side below 32 pixels are left out.

        Args:
          source: the split.
          filter_empty: whether to leave out images without any object in the data set. As by
            mmdetection, an image is kept whose objects are all left out.
          masks: whether masks are asked for.
          max_objects: of an image; a warning says that there are more.

        Raises:
          RunError: see `DetectionExamples`.
        """
        table = source.table
        kept = (table.sizes >= _SMALLEST_SIDE).all(axis=1)
        if filter_empty:
            kept &= table.counts > 0
        examples = cls(source, np.flatnonzero(kept), _learnable(source), masks)
        more = np.flatnonzero(examples.table.counts > max_objects)
        if len(more):
            most = int(examples.table.counts.max())
            warn(
                f"{len(more):,} images have more than config.data.max_objects = {max_objects} "
                f"objects, up to {most:,}: the smallest are left out. Set "
                f"--config.data.max_objects={most} to train on all."
            )
        return examples

    @classmethod
    def to_evaluate_on(cls, source: DetectionSource) -> Self:
        """All images with all objects.

        Raises:
          RunError: there are no images.
        """
        table = source.table
        return cls(source, np.arange(len(table)), np.ones(len(table.ids), bool), masks=False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        stored = self._source.reader.read(int(self._images[index]))
        objects = self.table.objects(index)
        corners = objects.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        example: Example = {
            "image": stored.data,
            "origin": stored.origin,
            "size": self.table.size(index),
            "image_id": self.table.image_ids[index],
            "boxes": corners.astype(np.float32),
            "classes": objects.classes,
        }
        if self._masks:
            example |= {"masks": stored.masks, "numbers": objects.numbers}
        return example

    def origin(self, index: int) -> str:
        """What errors call an image."""
        return self._source.reader.origin(int(self._images[index]))


def _learnable(source: DetectionSource) -> np.ndarray:
    """Which objects can be learned, bool (A,)."""
    table = source.table
    x, y, width, height = table.boxes.T
    rows, columns = table.sizes[table.image_of].T
    inside = (np.minimum(x + width, columns) - np.maximum(x, 0)).clip(0) * (
        np.minimum(y + height, rows) - np.maximum(y, 0)
    ).clip(0)
    return (
        ~table.ignored & ~table.crowd
        & (inside > 0) & (table.areas > 0) & (width >= 1) & (height >= 1)
    )  # fmt: skip
