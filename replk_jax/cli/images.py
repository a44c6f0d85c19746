"""The images on a command line."""

import argparse
import itertools
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from replk_jax.cli.argument_types import positive, user_path
from replk_jax.cli.arguments import add_reading
from replk_jax.cli.text import printable
from replk_jax.inference.image_program import ImageProgram, finite_outputs, prepare_ahead
from replk_jax.vision.images import ImageError, ImageLike, find_images

Result = TypeVar("Result")

FAILURES = (
    "An image that cannot be read, or for which the network gives NaN or infinite values, is named "
    "on standard error and left out; the exit status is then 1."
)


def add_arguments(verb: argparse.ArgumentParser, batch_size: int = 32) -> None:
    """Adds the images, the weights and the batch size, with its default."""
    verb.add_argument(
        "images",
        nargs="+",
        type=_image,
        metavar="IMAGE",
        help="a file, a folder, which is searched recursively, or - for one on standard input",
    )
    verb.add_argument(
        "--weights",
        type=user_path,
        required=True,
        metavar="FILE",
        help="a PyTorch checkpoint, or what convert or train wrote",
    )
    add_reading(verb)
    verb.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        help=f"largest batch ({batch_size})",
    )


def _image(name: str) -> str:
    """The name with ~ expanded, otherwise as given, for the results."""
    user_path(name)
    return os.path.expanduser(name)


class NamedImage(NamedTuple):
    """An image on the command line.

    Attributes:
      name: as given, or the path of one in a folder.
      image: what to read.
      place: its path below the folder that was given, or the name of the file; with "/".
    """

    name: str
    image: ImageLike
    place: PurePosixPath


class NamedImages:
    """Images with their names: as given on the command line, or paths of those in folders."""

    def __init__(self, names: Sequence[str]):
        self._failures = 0
        self.images: list[NamedImage] = []
        if names.count("-") > 1:
            raise ValueError("- is one image on standard input, which can be read only once.")
        for name in names:
            self._add(name)

    def outputs(self, program: ImageProgram) -> Iterator[tuple[list[str], Any]]:
        """Yields names, and the outputs of the program for their images: a tree of arrays (N, ...).

        Images that cannot be read, and those with an output that is not finite, are reported on
        standard error and left out.
        """

        def prepare(source: NamedImage) -> np.ndarray:
            return program.preprocessing.pixels(source.image, source.name)

        for prepared in self.prepared(prepare, program.batch_size):
            sources, pixels = zip(*prepared, strict=True)
            outputs = program.run(np.stack(pixels))
            finite = finite_outputs(outputs)
            names = [source.name for source in sources]
            for name in itertools.compress(names, ~finite):
                self.fail_not_finite(name)
            if finite.any():
                yield (
                    list(itertools.compress(names, finite)),
                    jax.tree.map(operator.itemgetter(finite), outputs),
                )

    def prepared(
        self, prepare: Callable[[NamedImage], Result], batch_size: int
    ) -> Iterator[list[tuple[NamedImage, Result]]]:
        """Yields images with what a function makes of them: from 1 to `batch_size` at a time.

        Args:
          prepare: is called in threads, ahead of the consumer. Images for which it raises
            ImageError are reported on standard error and left out.
          batch_size: the largest length of a list.
        """

        def attempt(source: NamedImage) -> tuple[NamedImage, Result | ImageError]:
            try:
                return source, prepare(source)
            except ImageError as error:
                return source, error

        for results in prepare_ahead(attempt, self.images, batch_size):
            prepared = []
            for source, result in results:
                if isinstance(result, ImageError):
                    self._fail(str(result))
                else:
                    prepared.append((source, result))
            if prepared:
                yield prepared

    def fail_not_finite(self, name: str) -> None:
        """Reports an image for which the network gives NaN or infinite values."""
        self._fail(
            f"{name}: the network gives NaN or infinite values. The training run may have diverged."
        )

    def finish(self) -> None:
        """Exits with status 1 if any image had no result."""
        if self._failures:
            raise SystemExit(1)

    def _add(self, name: str) -> None:
        path = Path(name)
        if name == "-":
            place = PurePosixPath("standard input")
            self.images.append(NamedImage(str(place), sys.stdin.buffer.read(), place))
        elif path.is_dir():
            found = find_images(path)
            self.images += [
                NamedImage(str(image), image, PurePosixPath(image.relative_to(path)))
                for image in found
            ]
            if not found:
                self._fail(f"There are no images in {name}.")
        else:
            self.images.append(NamedImage(name, name, PurePosixPath(path.name)))

    def _fail(self, message: str) -> None:
        self._failures += 1
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
