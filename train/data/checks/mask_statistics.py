"""Statistics of the masks of a split, and what is suspicious about them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from replk_jax.vision.label_sets import IGNORED, NO_CLASS, LabelSet
from train.data.checks.pictures import several
from train.reporting.examination import Finding

_SHOWN = 3  # names in a message about several masks
_MOST_IGNORED = 0.5  # of the pixels: more is a warning
_NAMES_SHOWN = 10  # classes in a message


class MaskStatistics:
    """Collects the masks of a split.

    Args:
      split: its name.
      label_set: of the masks.

    Attributes:
      label_set: of the masks.
      pixels: number of pixels of each class, int64 (K,).
      images: number of masks that have the class, int64 (K,).
    """

    def __init__(self, split: str, label_set: LabelSet):
        self._split, self.label_set = split, label_set
        self._of_value = np.zeros(256, np.int64)
        self._masks = self._all_ignored = 0
        self._ignored_names: list[str] = []
        self.pixels = np.zeros(len(label_set), np.int64)
        self.images = np.zeros(len(label_set), np.int64)

    def add(self, counts: np.ndarray, origin: str) -> None:
        """Counts a mask.

        Args:
          counts: the number of pixels of each value, int64 (256,).
          origin: the name of the mask in messages.
        """
        classes = self.label_set.class_of_value
        is_class = (classes != IGNORED) & (classes != NO_CLASS)
        of_class = np.zeros(len(self.label_set), np.int64)
        np.add.at(of_class, classes[is_class], counts[is_class])
        self._of_value += counts
        self._masks += 1
        self.pixels += of_class
        self.images += of_class > 0
        if counts[classes == IGNORED].sum() == counts.sum():
            self._all_ignored += 1
            if len(self._ignored_names) < _SHOWN:
                self._ignored_names.append(origin)

    @property
    def ignored_share(self) -> float:
        """The share of ignored pixels."""
        ignored = self._of_value[self.label_set.class_of_value == IGNORED].sum()
        return float(ignored / max(1, self._of_value.sum()))

    def statistics(self) -> dict[str, Any]:
        """The counts, for JSON."""
        names = self.label_set.class_names
        return {
            "ignored_share": self.ignored_share,
            "pixels_per_class": dict(zip(names, self.pixels.tolist(), strict=True)),
            "images_per_class": dict(zip(names, self.images.tolist(), strict=True)),
        }

    def findings(self) -> Iterator[Finding]:
        """What is suspicious about the masks as a whole."""
        if not self._masks:
            return
        if self._all_ignored:
            which = several(self._all_ignored, self._ignored_names, "mask")
            yield self._warning(
                "ignored as a whole",
                f"all pixels are ignored in {which}: nothing is learned from them; remove the "
                "pairs.",
            )
        values = set(np.flatnonzero(self._of_value).tolist())
        if values == {0, 255} and len(self.label_set) > 1:
            zero = int(self.label_set.class_of_value[0])
            learned = "nothing" if zero == IGNORED else f"only {self.label_set.class_names[zero]}"
            yield Finding(
                "error",
                "only 0 and 255",
                self._split,
                f"the masks have the values 0 and 255 only, and 255 is ignored: {learned} would be "
                "learned. If 255 stands for an object, write the number of its class in place of "
                "it.",
            )
        elif self.ignored_share > _MOST_IGNORED and self._all_ignored < self._masks:
            yield self._warning(
                "much is ignored",
                f"{self.ignored_share:.1%} of the pixels are ignored: check "
                "config.data.reduce_zero_label, which ignores the value 0, and the list of "
                "classes.",
            )
        yield from self._label_zero(values)

    def classes_that_are_missing(
        self, training: "MaskStatistics | None" = None
    ) -> Iterator[Finding]:
        """A warning for the classes that no mask has.

        Args:
          training: the masks of the training split, if these are of another one; what is missing
            there as well is not repeated.
        """
        missing = self.pixels == 0
        if training is None:
            meaning = (
                "the network cannot learn them; add images of them, or remove them from the list "
                "of classes"
            )
        else:
            missing &= training.pixels > 0
            meaning = "their IoU is not defined, and the mean is that of the other classes"
        names = [self.label_set.class_names[i] for i in np.flatnonzero(missing)]
        if names and self._masks:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            yield self._warning(
                "classes that never occur",
                f"{len(names)} of {len(self.label_set)} classes never occur: "
                f"{', '.join(names[:_NAMES_SHOWN])}{more}; {meaning}.",
            )

    def _label_zero(self, values: set[int]) -> Iterator[Finding]:
        """Whether 0 in the masks has the meaning that the label set gives it."""
        first = int(self.label_set.class_of_value[0])
        if values == {0}:
            yield self._warning(
                "only 0", "all pixels of all masks are 0: check that the masks are the right files."
            )
        elif 0 not in values and first == 0:
            yield self._warning(
                "0 never occurs",
                f"no mask has the value 0, which is the class {self.label_set.class_names[0]}: if "
                "values count from 1, set config.data.reduce_zero_label=True.",
            )
        elif 0 not in values and self._reduces_zero() and not self._of_value[len(self.label_set)]:
            yield self._warning(
                "0 never occurs",
                f"no mask has the value 0, which is ignored, nor {len(self.label_set)}, which is "
                f"the class {self.label_set.class_names[-1]}: check that values count from 1, as "
                "config.data.reduce_zero_label=True says.",
            )

    def _reduces_zero(self) -> bool:
        """Whether class k has the value k + 1, as with `reduce_zero_label`."""
        classes = self.label_set.class_of_value[: len(self.label_set) + 1]
        return np.array_equal(classes, [IGNORED, *range(len(self.label_set))])

    def _warning(self, kind: str, message: str) -> Finding:
        return Finding("warning", kind, self._split, message)
