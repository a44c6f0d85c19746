"""A split of a detection data set: a table of its objects, and images that are read one by one."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from train.data.instance_masks import InstanceMasks
from train.data.object_tables import ObjectTable
from train.errors import RunError
from train.reporting.examination import Problem


class StoredImage(NamedTuple):
    """An image and the masks of its objects, as they are stored.

    Attributes:
      data: of the image file.
      origin: what errors call it.
      masks: None if the data set has none.
    """

    data: bytes
    origin: str
    masks: InstanceMasks | None


class ImageReader(Protocol):
    """Reads the images of a split by position."""

    def read(self, image: int) -> StoredImage:
        """An image.

        Raises:
          ImageError: it cannot be read.
        """
        ...

    def read_masks(self, image: int) -> InstanceMasks | None:
        """The masks of the objects of an image alone; None if the data set has none.

        Raises:
          ImageError: they cannot be read.
        """
        ...

    def origin(self, image: int) -> str:
        """What errors call an image."""
        ...


@dataclasses.dataclass(frozen=True)
class DetectionSource:
    """A split of a detection data set.

    Attributes:
      table: of the images and their objects.
      class_names: of the objects.
      category_ids: numbers of the classes in COCO's form.
      has_masks: whether objects have masks, and they are kept.
      reader: of the images, by their position in the table.
      problems: of the annotations. An object that has a problem is not in the table.
    """

    table: ObjectTable
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    reader: ImageReader
    problems: Sequence[Problem] = ()

    def __len__(self) -> int:
        return len(self.table)

    def with_classes(self, names: Sequence[str], file: str) -> "DetectionSource":
        """The split with the objects of some of its classes, which keep their order.

        Args:
          names: of these classes.
          file: where the names are from, for errors.

        Raises:
          RunError: there are no such classes.
        """
        if unknown := sorted(set(names) - set(self.class_names)):
            raise RunError(
                f"{file} names classes that the data set does not have: {', '.join(unknown)}. It "
                f"has {', '.join(self.class_names)}."
            )
        if not names:
            raise RunError(f"{file} has no names of classes.")
        wanted = np.array([name in names for name in self.class_names])
        table = self.table.select(np.arange(len(self)), wanted[self.table.classes])
        table = dataclasses.replace(
            table, classes=(np.cumsum(wanted) - 1)[table.classes].astype(np.int32)
        )
        return dataclasses.replace(
            self,
            table=table,
            class_names=tuple(name for name in self.class_names if name in names),
            category_ids=tuple(
                number for number, kept in zip(self.category_ids, wanted, strict=True) if kept
            ),
        )
