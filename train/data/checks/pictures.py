"""Checks of image files: whether they can be read, and what is unusual about them."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from replk_jax.vision.images import ImageError, orientation
from train.data.transforms import decode
from train.reporting.examination import Finding

_SHOWN = 3  # names in a message about several images
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")

# What is unusual about images, and what it means and what to do.
ODDITIES = {
    "suffix of another format": "images are read by their content; rename them if other programs "
    "read them too",
    "CMYK": "converted without a colour profile, so colours may be wrong; convert them to RGB with "
    "their profile",
    "more than 8 bits": "the highest 8 bits are used; scale the values if they fill a part of "
    "their range only",
    "transparency": "it is dropped, and hidden colours appear; blend the images with a background",
    "EXIF orientation": "it is not applied, so the network sees them rotated or mirrored; rotate "
    "the pixels and remove the tag",
    "applied EXIF orientation": "the images are rotated or mirrored, and their masks or boxes are "
    "not; look with train.preview whether they fit",
    "several frames": "only the first frame or page is used; save it as an image if it is the "
    "wrong one",
    "one colour only": "possibly placeholders for missing images; remove them in that case",
}


class Picture(NamedTuple):
    """What is known about an image file.

    Attributes:
      origin: its name in messages.
      digest: 64 bits of a hash of the file.
      size: width and height; None if the image cannot be read.
      grey: whether the file has one channel of colour.
      oddities: keys of `ODDITIES`.
      problem: why it cannot be read; None if it can.
    """

    origin: str
    digest: int
    size: tuple[int, int] | None
    grey: bool
    oddities: tuple[str, ...]
    problem: str | None


def look_at_picture(data: bytes, origin: str, channels: int, upright: bool = False) -> Picture:
    """Decodes an image as training does, and reads its header.

    Args:
      data: of the file.
      origin: its name in messages.
      channels: 1 for grey, 3 for colour.
      upright: whether training applies the EXIF orientation.
    """
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    try:
        pixels = decode(data, channels, origin, upright=upright)
    except ImageError as error:
        return Picture(origin, digest, None, False, (), str(error))
    with Image.open(io.BytesIO(data)) as image:
        oddities = [*_oddities(image, origin, upright)]
        grey = image.mode in _GREY_MODES
    if (pixels == pixels[0, 0]).all():
        oddities.append("one colour only")
    height, width = pixels.shape[:2]
    return Picture(origin, digest, (width, height), grey, tuple(oddities), None)


def unreadable(origin: str, error: ImageError) -> Picture:
    """The picture of a file that cannot be opened."""
    return Picture(origin, 0, None, False, (), str(error))


class PictureStatistics:
    """Collects the pictures of a split.

    Args:
      split: its name.
      replace: whether training replaces images that cannot be read, rather than to stop.

    Attributes:
      findings: images that cannot be read.
      readable: number of images that can be read.
      grey: number of images with one channel of colour.
    """

    def __init__(self, split: str, replace: bool):
        self._split, self._replace = split, replace
        self._oddities: dict[str, list[str]] = {kind: [] for kind in ODDITIES}
        self._counts = dict.fromkeys(ODDITIES, 0)
        self._smallest: tuple[int, int] | None = None
        self._largest: tuple[int, int] | None = None
        self._shorter_sides: Counter[int] = Counter()
        self.findings: list[Finding] = []
        self.readable = self.grey = 0

    def add(self, picture: Picture) -> None:
        """Counts a picture."""
        if picture.size is None:
            remedy = (
                "Training replaces it by the next one"
                if self._replace
                else "Replace or remove it, or set config.data.unreadable=replace"
            )
            self.findings.append(
                Finding(
                    "warning" if self._replace else "error",
                    "unreadable image",
                    self._split,
                    f"{picture.problem} {remedy}.",
                )
            )
            return
        self.readable += 1
        self._shorter_sides[min(picture.size)] += 1
        self.grey += picture.grey
        if self._smallest is None or _area(picture.size) < _area(self._smallest):
            self._smallest = picture.size
        if self._largest is None or _area(picture.size) > _area(self._largest):
            self._largest = picture.size
        for kind in picture.oddities:
            self._counts[kind] += 1
            if len(self._oddities[kind]) < _SHOWN:
                self._oddities[kind].append(picture.origin)

    def sizes(self) -> tuple[str, str]:
        """The sizes with the fewest and most pixels, as text: width x height."""
        return format_size(self._smallest), format_size(self._largest)

    def smaller_than(self, side: int) -> Iterator[Finding]:
        """A warning if most images have a shorter side than the network's input.

        Args:
          side: of the input.
        """
        smaller = sum(n for length, n in self._shorter_sides.items() if length < side)
        if 2 * smaller > self.readable:
            yield Finding(
                "warning",
                "small images",
                self._split,
                f"{smaller:,} of {self.readable:,} images are smaller than the network's input of "
                f"{side} pixels, down to {format_size(self._smallest)}: they are enlarged, at the "
                "cost of larger images; lower config.data.image_size if accuracy allows.",
            )

    def all_findings(self, channels: int) -> Iterator[Finding]:
        """`findings`, and a warning for each kind of oddity.

        Args:
          channels: of the network's input.
        """
        yield from self.findings
        for kind, count in self._counts.items():
            if count:
                message = f"{kind} in {several(count, self._oddities[kind])}: {ODDITIES[kind]}."
                yield Finding("warning", kind, self._split, message)
        if channels == 3 and self.grey == self.readable and self.readable:
            yield Finding(
                "warning",
                "all grey",
                self._split,
                "all images are grey, and the network takes colour: set "
                "config.model.in_channels=1, or leave it if the weights to start from are for "
                "colour.",
            )
        if channels == 1 and (coloured := self.readable - self.grey):
            yield Finding(
                "warning",
                "coloured",
                self._split,
                f"{coloured:,} of {self.readable:,} images are coloured, and the network takes "
                "grey: their colours are dropped. Set config.model.in_channels=3 to use them.",
            )


def several(count: int, names: list[str], noun: str = "image") -> str:
    """The number of images, and the names of the first ones.

    Args:
      count: of all.
      names: of the first `count`, or of fewer.
      noun: what they are.
    """
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    return f"{count:,} {noun}{'' if count == 1 else 's'} ({'; '.join(names)}{more})"


def format_size(size: tuple[int, int] | None) -> str:
    """Width x height; a dash for None."""
    return f"{size[0]} x {size[1]}" if size else "-"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _oddities(image: Image.Image, origin: str, upright: bool) -> Iterator[str]:
    suffix = os.path.splitext(origin.rstrip(")"))[1].lower()
    expected = Image.registered_extensions().get(suffix)
    format = "JPEG" if image.format == "MPO" else image.format
    if expected and format != ("JPEG" if expected == "MPO" else expected):
        yield "suffix of another format"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.mode.startswith("I"):
        yield "more than 8 bits"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        yield "transparency"
    if orientation(image) != 1:
        yield "applied EXIF orientation" if upright else "EXIF orientation"
    # The second picture of an MPO is a preview, or the other eye's.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        yield "several frames"
