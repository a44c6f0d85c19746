"""Label sets: the classes of a segmentation data set, their colours, and the values of its masks.

Those of ADE20K, Cityscapes, Pascal VOC 2012 and COCO are here. Their sources and the licences of
these are in LICENSES.txt in the same folder.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = 255  # the class of a pixel that neither the loss nor the metrics count
NO_CLASS = -1  # of a value that a mask must not have
MAX_CLASSES = 255

_NAMES = ("ade20k", "cityscapes", "voc2012", "coco")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a segmentation data set.

    Attributes:
      name: of the set.
      class_names: K names, all different; K is at most 255.
      palette: colours of the classes, uint8 (K, 3), RGB.
      class_of_value: for each value of a pixel in a mask file, its class 0 to K - 1, `IGNORED` or
        `NO_CLASS`; int16 (256,). 255 is always `IGNORED`.
    """

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    class_of_value: np.ndarray

    @classmethod
    def of(
        cls,
        class_names: Sequence[str],
        palette: npt.ArrayLike | None = None,
        reduce_zero_label: bool = False,
        name: str = "custom",
    ) -> "LabelSet":
        """The label set of masks whose values are the classes, and 255 for ignored pixels.

        Args:
          class_names: K names.
          palette: colours, (K, 3); None for `palette_of(class_names)`.
          reduce_zero_label: whether 0 in a mask is ignored and class k has the value k + 1, as in
            ADE20K.
          name: of the set.

        Raises:
          ValueError: no class, too many, two of one name, or colours that do not fit.
        """
        names = tuple(class_names)
        count, first = len(names), int(reduce_zero_label)
        _require_names(names, MAX_CLASSES - first)
        colours = np.array(palette_of(names) if palette is None else palette)
        if colours.shape != (count, 3) or (colours != colours.astype(np.uint8)).any():
            raise ValueError(
                f"The palette of {count} classes has whole numbers from 0 to 255 and the shape "
                f"({count}, 3); got the shape {colours.shape}: {colours.tolist()}."
            )
        ignored = (0,) if reduce_zero_label else ()
        classes = _classes(range(first, first + count), ignored)
        return cls(name, names, _fixed(colours.astype(np.uint8)), classes)

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def names() -> tuple[str, ...]:
    """The names that `find` takes."""
    return _NAMES


@functools.cache
def find(name: str) -> LabelSet:
    """A known label set.

    Masks have these values: "ade20k" 0 for other and 1 to 150 (the scene parsing benchmark);
    "cityscapes" the label ids of the files `*_labelIds.png`, of which 19 are classes and the others
    are ignored; "voc2012" 0 for background, and 1 to 20; "coco" 0 to 79, the 80 categories of
    objects in the order of their ids.

    Args:
      name: one of `names()`.

    Raises:
      ValueError: another name.
    """
    if name not in _NAMES:
        raise ValueError(f"The known label sets are {', '.join(_NAMES)}; got {name!r}.")
    text = resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8")
    description: dict[str, Any] = json.loads(text)
    values, class_names, colours = zip(*description["classes"], strict=True)
    palette = _fixed(np.array(colours, np.uint8))
    return LabelSet(name, class_names, palette, _classes(values, description["ignored"]))


def palette_of(class_names: Sequence[str]) -> np.ndarray:
    """The colours of the known label set with these names; else the default ones.

    Args:
      class_names: K names, in order.

    Returns:
      RGB, uint8 (K, 3).
    """
    for name in _NAMES:
        if find(name).class_names == tuple(class_names):
            return find(name).palette
    return default_palette(len(class_names))


def default_palette(count: int) -> np.ndarray:
    """The colours of Pascal VOC for any number of classes.

    Bit 3k of a class is bit 7 - k of its red, bit 3k + 1 that of its green, and bit 3k + 2 that of
    its blue (VOC development kit, `VOClabelcolormap.m`). Class 0 is black.

    Args:
      count: K, at most 256.

    Returns:
      RGB, uint8 (K, 3).
    """
    classes = np.arange(count)[:, None]
    channels = np.arange(3)
    colours = sum((classes >> (3 * k + channels) & 1) << (7 - k) for k in range(3))
    return _fixed(np.asarray(colours, np.uint8))


def _require_names(class_names: tuple[str, ...], most: int) -> None:
    if not 1 <= len(class_names) <= most:
        raise ValueError(
            f"A label set has 1 to {most} classes, since a mask has 8 bits and 255 is ignored; got "
            f"{len(class_names)}."
        )
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise ValueError(f"The classes of a label set have different names; two are {twice!r}.")


def _classes(values: Sequence[int], ignored: Sequence[int]) -> np.ndarray:
    """`LabelSet.class_of_value` where class k has the value `values[k]`."""
    classes = np.full(256, NO_CLASS, np.int16)
    classes[list(ignored)] = IGNORED
    classes[255] = IGNORED
    classes[list(values)] = np.arange(len(values))
    return _fixed(classes)


def _fixed(array: np.ndarray) -> np.ndarray:
    """The array, which cannot be written to any more."""
    array.setflags(write=False)
    return array
