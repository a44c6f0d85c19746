"""Pictures of a run, as PNG files."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from replk_jax.io.files import replacing

FOLDER = "pictures"  # in the folder of the run


def write_pictures(workdir: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Writes pictures to `workdir/pictures/NAME.png`, over those of the same name.

    Args:
      workdir: folder of the run.
      pictures: uint8 (H, W, 3), by name.

    Raises:
      OSError: a file cannot be written.
    """
    for name, pixels in pictures.items():
        path = workdir / FOLDER / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(as_png(pixels))


def as_png(pixels: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
