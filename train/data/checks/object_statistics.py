"""Statistics of the objects of a split, and what is suspicious about them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from train.data.annotated_images import DetectionSource
from train.data.checks.pictures import several
from train.reporting.examination import Finding

_SHOWN = 3  # objects in a message
_NAMES_SHOWN = 10  # categories in a message
_SMALL, _LARGE = 32**2, 96**2  # areas in pixels, as COCO's evaluation has them


class ObjectStatistics:
    """The objects of a split.

    Args:
      split: its name.
      source: the split.
      max_objects: `config.data.max_objects`.

    Attributes:
      class_names: the categories.
      of_class: number of objects of each category, without crowds, int64 (K,).
      images_of: number of images that have them, int64 (K,).
    """

    def __init__(self, split: str, source: DetectionSource, max_objects: int):
        self._split, self._source, self._max_objects = split, source, max_objects
        table = self._table = source.table
        self.class_names = source.class_names
        counts = ~table.crowd & ~table.ignored
        self._counts = counts
        classes, images = table.classes[counts], table.image_of[counts]
        self.of_class = np.bincount(classes, minlength=len(self.class_names))
        pairs = np.unique(np.stack([classes, images], axis=1), axis=0)
        self.images_of = np.bincount(pairs[:, 0], minlength=len(self.class_names))

    def columns(self) -> tuple[str, ...]:
        """Images without objects, objects, crowds, the most in an image, and objects by size."""
        statistics = self.statistics()
        keys = ("images_without_objects", "objects", "crowds", "most_objects", "small", "medium",
                "large")  # fmt: skip
        return tuple(f"{statistics[key]:,}" for key in keys)

    def statistics(self) -> dict[str, Any]:
        """The counts, for JSON. Objects are small below 32 x 32 pixels, and large from 96 x 96."""
        table, areas = self._table, self._table.areas[self._counts]
        small, large = int((areas < _SMALL).sum()), int((areas >= _LARGE).sum())
        names = self.class_names
        return {
            "images_without_objects": int((table.counts == 0).sum()),
            "objects": len(areas),
            "crowds": int(table.crowd.sum()),
            "ignored": int(table.ignored.sum()),
            "most_objects": int(table.counts.max(initial=0)),
            "small": small,
            "medium": len(areas) - small - large,
            "large": large,
            "objects_per_category": dict(zip(names, self.of_class.tolist(), strict=True)),
            "images_per_category": dict(zip(names, self.images_of.tolist(), strict=True)),
        }

    def findings(self) -> Iterator[Finding]:
        """What is suspicious about the objects."""
        table = self._table
        x, y, width, height = table.boxes.T
        rows, columns = table.sizes[table.image_of].T
        right, bottom = x + width, y + height
        degenerate = (width <= 0) | (height <= 0)
        thin = ~degenerate & ((width < 1) | (height < 1))
        outside = ~degenerate & ((right <= 0) | (bottom <= 0) | (x >= columns) | (y >= rows))
        # Annotations are rounded: less than a pixel beyond the border is no mistake.
        beyond = ~degenerate & ~outside & (
            (x <= -1) | (y <= -1) | (right >= columns + 1) | (bottom >= rows + 1)
        )  # fmt: skip
        without_area = ~degenerate & (table.areas <= 0)
        yield from self._of_objects(
            "degenerate box", degenerate,
            "a width or height is 0 or less; training leaves such objects out, and they count as "
            "missed in an evaluation; correct or remove them",
        )  # fmt: skip
        yield from self._of_objects(
            "thin box", thin,
            "a width or height is less than a pixel; training leaves such objects out",
        )  # fmt: skip
        yield from self._of_objects(
            "box outside the image", outside,
            "the box is outside the image; training leaves such objects out; check that boxes are "
            "x, y, width, height in pixels, and that they belong to this image",
        )  # fmt: skip
        yield from self._of_objects(
            "box beyond the image", beyond,
            "the box leaves the image by a pixel or more; training cuts it, and an evaluation does "
            "not; check that boxes are x, y, width, height, and not two corners",
        )  # fmt: skip
        yield from self._of_objects(
            "no area", without_area, "the area is 0 or less; training leaves such objects out"
        )
        fractions = len(x) > 0 and float(table.boxes.max(initial=0)) <= 1
        if fractions:
            yield Finding(
                "error", "boxes in fractions", self._split,
                "all coordinates of boxes are at most 1: they seem to be fractions of the size, "
                "and must be pixels.",
            )  # fmt: skip
        most = int(table.counts.max(initial=0))
        many = np.flatnonzero(table.counts > self._max_objects)
        if len(many):
            names = [self._source.reader.origin(int(image)) for image in many[:_SHOWN]]
            yield self._warning(
                "many objects",
                f"{several(len(many), names)} have more than config.data.max_objects = "
                f"{self._max_objects} objects, up to {most:,}: training leaves the smallest out; "
                f"set --config.data.max_objects={most} to train on all.",
            )

    def missing_categories(self, training: "ObjectStatistics | None" = None) -> Iterator[Finding]:
        """A warning for the categories without objects.

        Args:
          training: the objects of the training split, if these are of another one; what is missing
            there as well is not repeated.
        """
        missing = self.of_class == 0
        if training is None:
            meaning = (
                "the network cannot learn them; add images of them, or remove them from the list "
                "of categories"
            )
        elif training.class_names != self.class_names:
            yield Finding(
                "error", "other categories", self._split,
                f"the categories are not those of the training split, or in another order: "
                f"{_brief(self.class_names)} and {_brief(training.class_names)}. Both splits need "
                "the same list.",
            )  # fmt: skip
            return
        else:
            missing = missing & (training.of_class > 0)
            meaning = "their AP is not defined, and the mean is that of the other categories"
        names = [self.class_names[i] for i in np.flatnonzero(missing)]
        if names:
            yield self._warning(
                "empty categories",
                f"{len(names)} of {len(self.class_names)} categories have no objects: "
                f"{_brief(names)}; {meaning}.",
            )

    def _of_objects(self, kind: str, which: np.ndarray, meaning: str) -> Iterator[Finding]:
        """A warning for the objects of a kind, if there are any."""
        rows = np.flatnonzero(which & ~self._table.ignored)
        if not len(rows):
            return
        images = self._table.image_of
        names = [
            f"annotation {self._table.ids[row]} of {self._source.reader.origin(int(images[row]))}, "
            f"{self._table.boxes[row].tolist()}"
            for row in rows[:_SHOWN].tolist()
        ]
        yield self._warning(kind, f"{several(len(rows), names, 'object')}: {meaning}.")

    def _warning(self, kind: str, message: str) -> Finding:
        return Finding("warning", kind, self._split, message)


def _brief(names: Any) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
