"""Images from files, bytes and arrays."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from replk_jax.errors import error_text

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image

# The endings by which files in a folder are taken for images.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}

# What is read, whatever a file is called. Pillow knows many more, among them EPS, which it hands
# to Ghostscript: a program that the file is written in.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")

_MODES = {1: "L", 3: "RGB"}


class ImageError(ValueError):
    """An image that cannot be read; the message names it and the reason."""


def read_image(source: ImageLike, channels: int = 3, name: str | None = None) -> Image.Image:
    """Reads an image whole, as grey or colour.

    As torchvision's and timm's loaders for ImageNet do: transparency is dropped, not blended, and
    the orientation that a camera notes beside the pixels (EXIF) is not applied. Unlike theirs,
    values of 16 bits are scaled to 8, not cut at 255.

    Args:
      source: a path or the bytes of a file (JPEG, PNG, BMP, WebP, PPM, GIF or TIFF), an image of
        Pillow, or an array: uint8, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
      channels: 1 for grey, 3 for colour.
      name: what errors call it; by default `image_name`.

    Returns:
      An image of mode "L" or "RGB".

    Raises:
      ImageError: no image, not the whole of one, or values without a known range.
    """
    mode = _MODES[channels]
    try:
        return _read(source, mode)
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        name = name or image_name(source)
        raise ImageError(f"Cannot read the image {name}: {_reason(error)}.") from error


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels of a grey or colour image, uint8 (H, W, 1) or (H, W, 3)."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def image_name(source: ImageLike) -> str:
    """What messages call "the image ...": its path if it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image) and getattr(source, "filename", ""):
        return os.fspath(source.filename)
    return "given"


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and the folders in it, in the order of their paths.

    Files are known by their endings; hidden ones are passed over.
    """
    return sorted(folder / name for name in image_names(folder))


def image_names(folder: str | os.PathLike, prefix: str = "") -> Iterator[str]:
    """Of the images in a folder and the folders in it, from there and in no order.

    No file is touched, so that millions can be listed; links to folders are not followed.

    Args:
      folder: whose files are known by their endings; hidden ones are passed over.
      prefix: of the names.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from image_names(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + entry.name


def _read(source: ImageLike, mode: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return _convert(source, mode)
    if isinstance(source, (str, os.PathLike, bytes)):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as image:
            return _convert(image, mode)
    return _convert(_from_array(np.asarray(source)), mode)


def _reason(error: Exception) -> str:
    """Without the name, which Pillow and the system put into some messages and not others."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image, or none of {', '.join(_FORMATS)}"
    return getattr(error, "strerror", None) or error_text(error)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would cut at 255, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its values have no known range (mode {image.mode})")
    return image.convert(mode)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, 0 to 255; got {array.dtype}")
    grey = array[:, :, 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if not array.size or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[-1] in (3, 4))):
        raise ValueError(
            f"an image has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {array.shape}"
        )
    return Image.fromarray(grey)
