"""The pictures that `segment` writes: class maps as PNG, and overlays with a legend."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from replk_jax.cli.images import NamedImage
from replk_jax.cli.picture_folder import PictureFolder, write_jpeg
from replk_jax.io.files import replacing
from replk_jax.vision.label_drawing import (
    IGNORED,
    IGNORED_COLOUR,
    overlay,
    shares,
    with_legend,
)

_LEGEND_CLASSES = 24
# Of an overlay, in pixels. A JPEG has at most 65,500, including the legend.
_SMALLEST_WIDTH, _TALLEST_ENLARGED, _LARGEST_SIDE = 384, 4096, 32_000


class Pictures:
    """The pictures of images in a folder, below which they are where the images are below theirs.

    Args:
      folder: to write to.
      images: whose pictures are written.
      class_names, palette: of the classes: K names, and colours uint8 (K, 3).
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[NamedImage],
        class_names: Sequence[str],
        palette: np.ndarray,
    ):
        self._folder = PictureFolder(folder, images, (".png", "_overlay.jpg"), "segment")
        self._class_names = class_names
        self._palette = palette

    def check(self, force: bool) -> None:
        """See `PictureFolder.check`."""
        self._folder.check(force)

    def write(
        self, image: NamedImage, pixels: np.ndarray, classes: np.ndarray
    ) -> tuple[Path, Path]:
        """Writes the pictures of an image, each atomically.

        Args:
          image: one of those given.
          pixels: uint8 (H, W, C).
          classes: uint8 (H, W).

        Returns:
          The paths of the class map and of the overlay.
        """
        index_path, overlay_path = self._folder.paths(image)
        with replacing(index_path) as file:
            file.write(index_png(classes, self._palette))
        write_jpeg(overlay_path, self._overlay(pixels, classes))
        return index_path, overlay_path

    def _overlay(self, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        labels = {
            index: f"{self._class_names[index]} {_percentage(share)}"
            for index, share in list(shares(classes).items())[:_LEGEND_CLASSES]
        }
        picture = overlay(pixels, classes, self._palette)
        height, width, _ = picture.shape
        # Small images are enlarged, so that they can be seen beside the legend.
        times = max(1, min(_SMALLEST_WIDTH // width, _TALLEST_ENLARGED // height))
        picture = picture.repeat(times, 0).repeat(times, 1)
        step = -(-max(height, width) // _LARGEST_SIDE)
        picture = picture[::step, ::step]
        size = max(14, picture.shape[1] // 64)
        return with_legend(picture, labels, self._palette, font_size=size)


def index_png(classes: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG with 8 bits per pixel whose values are the classes, in the colours of the palette.

    Args:
      classes: uint8 (H, W); 255 for ignored pixels.
      palette: uint8 (K, 3).
    """
    colours = np.zeros((IGNORED + 1, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORED] = IGNORED_COLOUR
    image = Image.fromarray(classes, "L")
    image.putpalette(colours.tobytes())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _percentage(share: float) -> str:
    if share < 0.0005:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"
