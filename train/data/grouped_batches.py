"""Batches to evaluate on, of images that are grouped by the shapes of their arrays.

Each group fills whole batches; the rest of its last batch is padding. So every image counts once,
and each group is one compiled program.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError
from train.data import pipeline
from train.data.pipeline import Batches, Example
from train.data.splits import Reading

Size = tuple[int, int]  # (height, width)


class Examples(Protocol):
    """Examples by position."""

    def __getitem__(self, index: int) -> Example: ...


class SizedTransform(Protocol):
    """A transform whose arrays have shapes that depend on the size of the image."""

    def map(self, example: Example) -> Example:
        """Transforms an example.

        Raises:
          ImageError: it cannot be read.
        """
        ...

    def blank(self, size: Any) -> Example:
        """The arrays of an image of a size (height, width), without its contents."""
        ...


class _Element(NamedTuple):
    """An example to read.

    Attributes:
      position: among the examples.
      size: (height, width) of the image.
      counts: False for padding.
    """

    position: int
    size: Size
    counts: bool


def grouped_batches(
    examples: Examples,
    transform: SizedTransform,
    groups: Iterable[Sequence[int]],
    sizes: Sequence[Size] | dict[int, Size],
    batch_size: int,
    reading: Reading,
) -> Batches:
    """This process's rows of batches that have every example once.

    Args:
      examples: to evaluate on.
      transform: of each example.
      groups: positions of the examples whose arrays have one shape.
      sizes: (height, width) of the images, by position.
      batch_size: of all processes.
      reading: options; with `replace`, an image that cannot be read becomes a blank one.

    Yields:
      The transformed examples; `mask`, bool, False for padding and for images that cannot be read;
      and `unreadable`, see `train.reporting.unreadable.reported`.

    Raises:
      RunError: an image cannot be read, and `reading` does not replace it.
    """
    elements = []
    for positions in groups:
        found = [_Element(position, sizes[position], True) for position in positions]
        padding = -len(found) % batch_size
        elements += found + [found[-1]._replace(counts=False)] * padding
    dataset = grain.MapDataset.source(elements).map(
        _SizedExample(examples, transform, reading.replace)
    )
    return pipeline.read_batches(dataset, batch_size, reading.parallelism)


@dataclasses.dataclass(frozen=True)
class _SizedExample(grain.transforms.Map):
    """The transformed example of an `_Element`; a blank one if it cannot be read."""

    examples: Examples
    transform: SizedTransform
    replace: bool

    def map(self, element: _Element) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # Grain's returns None
        position, size, counts = element
        unreadable = ""
        try:
            example = self.transform.map(self.examples[position])
        except ImageError as error:
            if not self.replace:
                raise pipeline.unreadable_error(error) from error
            example = self.transform.blank(size)
            unreadable = escaped(str(error)) if counts else ""
            counts = False
        return pipeline.with_fields(example, mask=np.bool_(counts), unreadable=np.str_(unreadable))
