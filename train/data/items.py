"""Items of a data set to prepare: the files of an example, and what is stored of it."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from replk_jax.vision.images import ImageError, image_error

# (bytes of an image, its name in messages) -> bytes to store.
Encode = Callable[[bytes, str], bytes]


class StorableItem(Protocol):
    """An example to store; its files are read one example at a time."""

    @property
    def name(self) -> str:
        """Unique in the split; UTF-8 (see `io.text.storable`)."""
        ...

    @property
    def bytes(self) -> int:
        """The number of bytes of its files."""
        ...

    @property
    def fingerprint(self) -> str:
        """What the stored example depends on, besides its name and the contents of its files."""
        ...


class Stored(NamedTuple):
    """What is stored of an item.

    Attributes:
      example: by name of the feature.
      error: the message about an item that cannot be read; None for others.
    """

    example: dict[str, Any]
    error: str | None


class Item(NamedTuple):
    """An image to store with its label.

    Attributes:
      name: unique in the split; UTF-8 (see `io.text.storable`).
      label: of its class.
      path: of the file that has it.
      start, size: of its bytes in the file; a size of -1 is the rest of the file.
    """

    name: str
    label: int
    path: str
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The bytes of the image.

        Raises:
          ImageError: they cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise image_error(str(self), error) from error

    @property
    def bytes(self) -> int:
        """The number of its bytes."""
        return os.path.getsize(self.path) if self.size < 0 else self.size

    @property
    def fingerprint(self) -> str:
        """Its label."""
        return str(self.label)

    def __str__(self) -> str:
        return self.path if self.size < 0 else f"{self.name} in {self.path}"


def image_example(encode: Encode, item: Item) -> Stored:
    """The example of an image with its label.

    Args:
      encode: encodes the image for storage.
      item: the image.

    Returns:
      `image`, `label` and `file_name`; an image that cannot be encoded is stored as it is.
    """
    image, message = b"", None
    try:
        image = item.read()
        image = encode(image, str(item))
    except ImageError as error:
        message = str(error)
    return Stored({"image": image, "label": item.label, "file_name": item.name}, message)


AnyItem = TypeVar("AnyItem", bound=StorableItem)
ItemOut = TypeVar("ItemOut", bound=StorableItem, covariant=True)


class Items(Protocol[ItemOut]):
    """The items of a split, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ItemOut: ...
