"""Where the pictures of images go: below a folder as the images are below theirs."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from replk_jax.cli.arguments import check_output
from replk_jax.cli.images import NamedImage
from replk_jax.io.files import replacing


class PictureFolder:
    """The paths of the pictures of images.

    Args:
      folder: to write to.
      images: whose pictures are written.
      endings: of the names of the pictures of an image, after its own name without ending.
      verb: what is done with the images, for errors.
    """

    def __init__(
        self, folder: Path, images: Sequence[NamedImage], endings: Sequence[str], verb: str
    ):
        self._folder, self._images, self._endings, self._verb = folder, images, endings, verb

    def paths(self, image: NamedImage) -> list[Path]:
        """Of the pictures of an image."""
        place = self._folder / image.place
        return [place.with_name(f"{place.stem}{ending}") for ending in self._endings]

    def check(self, force: bool) -> None:
        """Makes the folder, and checks that all pictures can be written, before the computation.

        Args:
          force: replace pictures that are there.

        Raises:
          ValueError: two images would have the same picture, or a picture would replace an image.
          FileExistsError: a picture is there already, and `force` is not set.
          OSError: a folder cannot be made.
        """
        sources: dict[Path, NamedImage] = {}
        inputs = {_resolved(image.image) for image in self._images} - {None}
        for image in self._images:
            for path in self.paths(image):
                other = sources.setdefault(path, image)
                if other is not image:
                    raise ValueError(
                        f"{other.name} and {image.name} would both be written to {path}: "
                        f"{self._verb} them in two runs with different folders."
                    )
                if path.resolve() in inputs:
                    raise ValueError(
                        f"{path} is an image to {self._verb}, which its own picture would replace: "
                        "name another folder."
                    )
        for folder in {self._folder, *(path.parent for path in sources)}:
            folder.mkdir(parents=True, exist_ok=True)
        for path in sources:
            check_output(path, force)


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (H, W, 3), atomically."""
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "JPEG", quality=92, subsampling=0)
    with replacing(path) as file:
        file.write(encoded.getvalue())


def _resolved(image: object) -> Path | None:
    return Path(image).resolve() if isinstance(image, (str, Path)) else None
