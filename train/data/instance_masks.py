"""The masks of the objects of an image, in the form in which a data set stores them."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError
from train.data import coco_masks
from train.data.masks import mask_values


class InstanceMasks(Protocol):
    """The masks of the objects of an image of H x W pixels."""

    def bitmap(self, number: int, height: int, width: int) -> np.ndarray:
        """The pixels of an object, uint8 (H, W), 0 or 1.

        Args:
          number: of the object in the image, from 0.
          height, width: of the image.

        Raises:
          ImageError: there is no valid mask, or none of this size.
        """
        ...

    def segmentation(self, number: int, height: int, width: int) -> Any:
        """The mask of an object in COCO's form: polygons or run lengths.

        Raises:
          ImageError: see `bitmap`.
        """
        ...


class CocoSegmentations(NamedTuple):
    """Polygons and run lengths.

    Attributes:
      texts: JSON for each object.
      origin: what errors call the image.
    """

    texts: Sequence[str]
    origin: str

    def bitmap(self, number: int, height: int, width: int) -> np.ndarray:
        """See `InstanceMasks`."""
        try:
            return coco_masks.to_bitmap(self._parsed(number), height, width)
        except ValueError as error:
            raise self._error(number, error) from error

    def segmentation(self, number: int, height: int, width: int) -> Any:
        """See `InstanceMasks`."""
        try:
            return coco_masks.to_run_lengths(self._parsed(number), height, width)
        except ValueError as error:
            raise self._error(number, error) from error

    def _parsed(self, number: int) -> Any:
        return json.loads(self.texts[number])

    def _error(self, number: int, error: ValueError) -> ImageError:
        return ImageError(
            escaped(
                f"{self.origin}: the mask of object {number + 1} cannot be used: {error}. Correct "
                "or remove the annotation."
            )
        )


@dataclasses.dataclass(frozen=True)
class InstanceImage:
    """An image whose values are the numbers of the objects, from 1; 0 is background.

    Attributes:
      data: of a PNG file.
      origin: what errors call it.
    """

    data: bytes
    origin: str

    @functools.cached_property
    def _values(self) -> np.ndarray:
        return mask_values(self.data, self.origin)

    def bitmap(self, number: int, height: int, width: int) -> np.ndarray:
        """See `InstanceMasks`."""
        values = self._values
        if values.shape != (height, width):
            raise ImageError(
                escaped(
                    f"The instances of {self.origin} have {values.shape[1]} x {values.shape[0]} "
                    f"pixels, and the image has {width} x {height}: the sizes must be equal."
                )
            )
        return (values == number + 1).astype(np.uint8)

    def segmentation(self, number: int, height: int, width: int) -> Any:
        """See `InstanceMasks`."""
        return coco_masks.from_bitmap(self.bitmap(number, height, width))
