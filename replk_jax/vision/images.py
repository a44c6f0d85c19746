"""Images from files, bytes and arrays."""

import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from replk_jax.io.errors import error_text
from replk_jax.io.text import escaped

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image

# Endings of the files in a folder that are read as images, in lower case. torchvision's ImageFolder
# takes .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff and .webp.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    }
)

# Suffixes of files that data sets store next to their images. They are skipped without a warning.
_SIDE_FILES = frozenset(
    {
        *(".txt", ".md", ".html", ".log", ".ini", ".db"),
        *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
    }
)

# What is read, whatever a file is called. Pillow knows many more, among them EPS, which it hands
# to Ghostscript: a program that the file is written in.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF", "JPEG2000")

# An image of Pillow decodes its file at the first access to its pixels, and not safely in two
# threads. Each is loaded under the lock of its id, so that different images seldom wait.
_LOADING = tuple(threading.Lock() for _ in range(64))

# What `Image.transpose` does to show an image upright, by its EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # a tag of EXIF

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0  # a value of the latter

_MODES = {1: "L", 3: "RGB"}


class ImageError(ValueError):
    """An image that cannot be read; the message names it and the reason."""


def read_image(
    source: ImageLike, channels: int = 3, name: str | None = None, *, upright: bool = False
) -> Image.Image:
    """Reads an image whole, as grey or colour.

    As torchvision's and timm's loaders for ImageNet do: transparency is dropped, not blended; the
    EXIF orientation is by default not applied, except to a TIFF, to which Pillow applies it; only
    the first frame or page is read. Unlike these loaders, it scales values of 9 to 16 bits to 8
    bits instead of clipping them at 255.

    Several threads may read the same image of Pillow.

    Args:
      source: a path or the bytes of a file (JPEG, PNG, BMP, WebP, PBM, PGM, PPM, GIF, TIFF or
        JPEG 2000), an image of Pillow, or an array: uint8, (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4).
      channels: 1 for grey, 3 for colour.
      name: what errors call it; by default `image_name`.
      upright: whether to apply the EXIF orientation, as OpenCV and mmcv do. One that cannot be
        read is not applied.

    Returns:
      An image of mode "L" or "RGB", without metadata if it is upright.

    Raises:
      ImageError: no image, not the whole of one, or values without a known range: float, 32 bits,
        or 16 bits that Pillow holds as 32 without the file, as in a copy of a PGM.
      ValueError: another number of channels.
    """
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 (grey) or 3 (colour); got {channels}")
    mode = _MODES[channels]
    try:
        return _read(source, mode, upright)
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        raise image_error(name or image_name(source), error) from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that is to be applied to an image, from 1 (upright) to 8.

    Args:
      image: of Pillow. It has applied that of a TIFF.
    """
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow trips over damaged EXIF data, which OpenCV ignores
        return 1
    return value if value in _TURNS else 1


def image_error(name: str, error: Exception) -> ImageError:
    """What to raise for an image whose reading failed: one line that names it and the reason.

    Args:
      name: its path, or what else messages call it; escaped where it cannot be printed.
      error: the cause.
    """
    return ImageError(escaped(f"Cannot read the image {name}: {_reason(error)}."))


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels of a grey or colour image, uint8 (H, W, 1) or (H, W, 3)."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def image_name(source: ImageLike) -> str:
    """What messages call "the image ...": its path if it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    # Of the images of Pillow, only those that were opened have a name.
    filename = getattr(source, "filename", "") if isinstance(source, Image.Image) else ""
    return os.fspath(filename) if filename else "given"


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and the folders in it, in the order of their paths.

    Warns of the files that `image_names` counts as left out.

    Args:
      folder: to search.
    """
    left_out = Counter()
    found = sorted(folder / name for name in image_names(folder, left_out=left_out))
    if left_out:
        warnings.warn(describe_left_out(folder, left_out), stacklevel=2)
    return found


def image_names(
    folder: str | os.PathLike, prefix: str = "", left_out: Counter[str] | None = None
) -> Iterator[str]:
    """Names of the images in a folder and the folders in it, relative to it and in no order.

    Files are recognised by their endings (`IMAGE_SUFFIXES`, in upper or lower case) and not
    opened, so that millions can be listed. Links to folders are not followed.

    Args:
      folder: to search.
      prefix: put before the names.
      left_out: counts, by ending, the files that are no images; those without an ending and the
        links to folders under words that say so. Hidden files and folders (their names start with
        a dot) and files of text or data (`.txt`, `.json`, `.csv`, `.db` and the like) do not count.
    """
    left_out = Counter() if left_out is None else left_out
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir(follow_symlinks=False):
                yield from image_names(entry.path, f"{prefix}{entry.name}/", left_out)
            elif suffix in IMAGE_SUFFIXES:
                yield prefix + entry.name
            elif suffix not in _SIDE_FILES:
                is_link = entry.is_symlink() and entry.is_dir()
                left_out["link to a folder" if is_link else suffix or "without an ending"] += 1


def describe_left_out(folder: str | os.PathLike, left_out: Counter[str]) -> str:
    """The warning about the files that `image_names` skipped: their number by suffix."""
    shown = [f"{count:,} {kind}" for kind, count in left_out.most_common(10)]
    if more := len(left_out) - len(shown):
        shown.append(f"files of {more:,} more endings")
    return escaped(
        f"{os.fspath(folder)} has files that are not read as images: {', '.join(shown)}. "
        f"The endings of images are {', '.join(sorted(IMAGE_SUFFIXES))}."
    )


def _read(source: ImageLike, mode: str, upright: bool) -> Image.Image:
    turn = None
    if isinstance(source, Image.Image):
        with _LOADING[id(source) // 64 % len(_LOADING)]:  # addresses end in zeros
            source.load()
            if upright:
                turn = _TURNS.get(orientation(source))
        read = _convert(source, mode)
    elif isinstance(source, (str, os.PathLike, bytes)):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as image:
            read = _convert(image, mode)
            if upright:
                turn = _TURNS.get(orientation(image))
    else:
        read = _convert(_from_array(np.asarray(source)), mode)
    if upright:
        read.info.clear()  # with the orientation, which must not be applied again
    return read if turn is None else read.transpose(turn)


def _reason(error: Exception) -> str:
    """Never empty; without the name, which Pillow and the system put into some messages only."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image, or none of {', '.join(_FORMATS)}"
    text = getattr(error, "strerror", None) or error_text(error)
    return text.strip().removesuffix(".") or type(error).__name__


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = _eight_bits(image)  # convert() would cut at 255, not scale
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its values have no known range (mode {image.mode}); scale them to uint8 first"
        )
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits by their highest 8.

    Pillow scales those of a PGM to 16 bits, whatever the largest value that the file allows. In a
    TIFF they have as many bits as its tags say, and stay negative where 0 is white.
    """
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    values = np.asarray(image) >> (bits - 8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(
            f"pixels must be uint8, 0 to 255; got {array.dtype}: scale its values first"
        )
    grey = array[:, :, 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if not array.size or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[-1] in (3, 4))):
        raise ValueError(
            f"an image has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {array.shape}"
        )
    return Image.fromarray(grey)
