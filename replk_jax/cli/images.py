"""The images that a command line names."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from replk_jax.cli.arguments import add_reading, positive
from replk_jax.cli.text import printable
from replk_jax.image_program import prepare_ahead
from replk_jax.images import ImageError, ImageLike, find_images
from replk_jax.preprocessing import Preprocessing

UNREADABLE = "An image that cannot be read is named, the others go on, and the exit status is 1."


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """The images, the weights, and how many at once."""
    verb.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a folder, which is searched with those in it, or - for one on standard input",
    )
    verb.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="a PyTorch checkpoint, or what convert or train wrote",
    )
    add_reading(verb)
    verb.add_argument("--batch-size", type=positive, default=32, help="most images at once (32)")


class NamedImages:
    """Images by the names that a command line gives them, those in folders by their paths."""

    def __init__(self, names: Sequence[str]):
        self._failures = 0
        self._sources: list[tuple[str, ImageLike]] = []
        for name in names:
            self._add(name)

    def batches(
        self, preprocessing: Preprocessing, batch_size: int
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Names, and pixels (N, S, S, C) with N from 1 to `batch_size`.

        Those that cannot be read are named on standard error.
        """

        def prepare(source: tuple[str, ImageLike]) -> tuple[str, np.ndarray | ImageError]:
            name, image = source
            try:
                return name, preprocessing.pixels(image, name)
            except ImageError as error:
                return name, error

        for results in prepare_ahead(prepare, self._sources, batch_size):
            prepared = []
            for name, result in results:
                if isinstance(result, ImageError):
                    self._fail(str(result))
                else:
                    prepared.append((name, result))
            if prepared:
                names, pixels = zip(*prepared, strict=True)
                yield list(names), np.stack(pixels)

    def finish(self) -> None:
        """Ends with status 1 if an image could not be read."""
        if self._failures:
            raise SystemExit(1)

    def _add(self, name: str) -> None:
        if name == "-":
            self._sources.append(("standard input", sys.stdin.buffer.read()))
        elif Path(name).is_dir():
            found = find_images(Path(name))
            self._sources += [(str(path), path) for path in found]
            if not found:
                self._fail(f"There are no images in {name}.")
        else:
            self._sources.append((name, name))

    def _fail(self, message: str) -> None:
        self._failures += 1
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
