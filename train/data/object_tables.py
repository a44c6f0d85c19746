"""The annotated objects of a split in a few arrays, whatever the format of the data set.

A hundred thousand images with a million objects take 60 MB; a list of dictionaries takes two
gigabytes, and as long to send to a worker process as to read.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Objects(NamedTuple):
    """The n objects of an image, in the order of the data set.

    Attributes:
      boxes: float64 (n, 4): x, y, width, height in pixels, where the data set's origin is the upper
        left corner of the first pixel.
      areas: float64 (n,), of the objects as the data set states them, in pixels.
      classes: int32 (n,), from 0.
      crowd: bool (n,), whether a box has many objects, or one that does not count.
      ignored: bool (n,), whether the data set asks to ignore the object.
      numbers: int32 (n,), their positions among all objects that are stored with the image.
    """

    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class ObjectTable:
    """The images of a split and all their objects.

    Attributes:
      image_ids: int32 (I,), the numbers of the images in the data set; 1, 2, ... if these are texts
        or do not fit 32 bits, which is what devices have.
      sizes: int32 (I, 2), height and width of the upright images.
      ends: int64 (I + 1,): image i has the objects `ends[i]` to `ends[i + 1] - 1`.
      boxes, areas, classes, crowd, ignored, numbers: of all objects; see `Objects`.
      ids: int64 (A,), numbers of the objects in the data set.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    numbers: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def size(self, image: int) -> tuple[int, int]:
        """(height, width) of an image."""
        height, width = self.sizes[image].tolist()
        return height, width

    def objects(self, image: int) -> Objects:
        """The objects of an image."""
        rows = slice(self.ends[image], self.ends[image + 1])
        return Objects(
            self.boxes[rows], self.areas[rows], self.classes[rows], self.crowd[rows],
            self.ignored[rows], self.numbers[rows],
        )  # fmt: skip

    @property
    def image_of(self) -> np.ndarray:
        """The image of each object, int64 (A,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def counts(self) -> np.ndarray:
        """The number of objects of each image, int64 (I,)."""
        return np.diff(self.ends)

    def select(self, images: np.ndarray, objects: np.ndarray) -> "ObjectTable":
        """The table of some of the images and of some of their objects.

        Args:
          images: their positions, in order.
          objects: bool (A,), which objects are wanted where their image is.
        """
        ends = self.ends.tolist()
        rows = [np.arange(ends[image], ends[image + 1]) for image in images.tolist()]
        rows = [some[objects[some]] for some in rows]
        counts = [len(some) for some in rows]
        chosen = np.concatenate([np.arange(0), *rows])
        return ObjectTable(
            self.image_ids[images],
            self.sizes[images],
            np.cumsum([0, *counts], dtype=np.int64),
            *(
                array[chosen]
                for array in (
                    self.boxes, self.areas, self.classes, self.crowd, self.ignored, self.numbers,
                    self.ids,
                )
            ),
        )  # fmt: skip


class TableBuilder:
    """Collects the images and objects of a split, in order."""

    def __init__(self):
        self._ids: list[int | str] = []
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._objects: list[tuple[int, float, int, bool, bool]] = []

    def add_image(self, image_id: int | str, height: int, width: int) -> None:
        """Adds an image; the objects that follow are of it."""
        self._ids.append(image_id)
        self._sizes.append((height, width))
        self._counts.append(0)

    def add_object(
        self,
        box: Iterable[float],
        class_number: int,
        *,
        area: float | None = None,
        crowd: bool = False,
        ignored: bool = False,
        object_id: int | None = None,
    ) -> None:
        """Adds an object.

        Args:
          box: x, y, width, height.
          class_number: from 0.
          area: None for that of the box.
          crowd, ignored: see `Objects`.
          object_id: None for the number of objects so far, from 1.
        """
        x, y, width, height = map(float, box)
        self._boxes.append((x, y, width, height))
        area = width * height if area is None else float(area)
        number = len(self._boxes) if object_id is None else object_id
        self._objects.append((number, area, class_number, crowd, ignored))
        self._counts[-1] += 1

    def table(self) -> ObjectTable:
        """The table of all that was added."""
        ids, areas, classes, crowd, ignored = (
            zip(*self._objects, strict=True) if (self._objects) else ((),) * 5
        )
        return ObjectTable(
            image_ids=_image_numbers(self._ids),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            ends=np.cumsum([0, *self._counts], dtype=np.int64),
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4),
            areas=np.array(areas, np.float64),
            classes=np.array(classes, np.int32),
            crowd=np.array(crowd, bool),
            ignored=np.array(ignored, bool),
            numbers=np.array(
                [number for count in self._counts for number in range(count)], np.int32
            ),
            ids=np.array(ids, np.int64),
        )


def _image_numbers(ids: list[int | str]) -> np.ndarray:
    """See `ObjectTable.image_ids`."""
    if all(isinstance(number, int) and -(2**31) <= number < 2**31 for number in ids):
        return np.array(ids, np.int32)
    return np.arange(1, len(ids) + 1, dtype=np.int32)
