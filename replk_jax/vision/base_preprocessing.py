"""The base of all preprocessings, and the normalisation that they share."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import jax
import numpy as np

from replk_jax.vision.images import ImageLike

Array = TypeVar("Array", np.ndarray, jax.Array)

# Of ImageNet's training images, for values in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_KINDS: dict[str, type["BasePreprocessing"]] = {}


class BasePreprocessing(abc.ABC):
    """Preparation of the images that a network is evaluated on.

    A subclass with a `kind` of its own is stored with checkpoints and found again by it. It
    describes itself in `as_dict`, is rebuilt by `from_fields`, and prepares images in `pixels`.

    Attributes:
      kind: name of the subclass in checkpoints.
      mean, std: for values in [0, 1], one per channel: 3, or 1 for grey images.
    """

    kind: ClassVar[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    @property
    @abc.abstractmethod
    def size(self) -> tuple[int, int] | None:
        """(height, width) of prepared images in pixels; None if they differ in size."""

    @abc.abstractmethod
    def pixels(self, image: ImageLike, name: str | None = None) -> np.ndarray:
        """The prepared image before normalisation, uint8 (H, W, C).

        Args:
          image: as `read_image` takes it.
          name: what errors call it.

        Raises:
          ImageError: an image that cannot be read or prepared.
        """

    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""

    @classmethod
    @abc.abstractmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The reverse of `fields`.

        Raises:
          ValueError: fields that are missing or unknown, or that make no sense.
        """

    @property
    def channels(self) -> int:
        """Of the images: 3, or 1 for grey ones."""
        return len(self.mean)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Maps an image, as `read_image` takes it, to float32 (H, W, C), normalised.

        Raises:
          ImageError: as `pixels`.
        """
        return normalize(self.pixels(image), self.mean, self.std)

    def resized(self, size: int) -> "BasePreprocessing":
        """This preprocessing for square images of another size.

        Args:
          size: side of the squares in pixels.

        Raises:
          ValueError: a preprocessing with another size that cannot change.
        """
        if self.size not in (None, (size, size)):
            raise ValueError(
                f"The preprocessing {self.kind!r} gives images of (height, width) {self.size}; got "
                f"a size of {size}."
            )
        return self

    def in_words(self) -> str:
        """The kind and the fields as text."""
        return ", ".join(f"{name} {value}" for name, value in self.as_dict().items())

    def as_dict(self) -> dict[str, Any]:
        """The kind and the fields, as JSON can hold them."""
        return {"kind": self.kind, **self.fields()}

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> "BasePreprocessing":
        """The reverse of `as_dict`. Without a kind, as version 0.1.0 wrote it, a `Preprocessing`.

        Raises:
          ValueError: a kind or fields that are not known, or that make no sense.
        """
        if not isinstance(description, Mapping):
            raise ValueError(
                f"A preprocessing has the fields of its kind, as a dictionary; got {description!r}."
            )
        fields = dict(description)
        kind = fields.pop("kind", "square")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(
                f"The kinds of preprocessing are {', '.join(sorted(_KINDS))}; got {kind!r}."
            )
        return _KINDS[kind].from_fields(fields)


def normalize(pixels: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Maps uint8 (..., C) to float32 of about zero mean and unit variance in each channel."""
    per_channel = (1,) * (pixels.ndim - 1) + (-1,)
    means, stds = (np.asarray(values, np.float32).reshape(per_channel) for values in (mean, std))
    return (pixels.astype(np.float32) / 255 - means) / stds
