"""The images on a command line."""

import argparse
import itertools
import operator
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from replk_jax.cli.argument_types import positive, user_path
from replk_jax.cli.arguments import add_reading
from replk_jax.cli.text import printable
from replk_jax.inference.image_program import ImageProgram, finite_outputs, prepare_ahead
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.images import ImageError, ImageLike, find_images

FAILURES = (
    "An image that cannot be read, or for which the network gives NaN or infinite values, is named "
    "on standard error and left out; the exit status is then 1."
)


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the images, the weights and the batch size."""
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
    verb.add_argument("--batch-size", type=positive, default=32, help="largest batch (32)")


def _image(name: str) -> str:
    """The name with ~ expanded, otherwise as given, for the results."""
    user_path(name)
    return os.path.expanduser(name)


class NamedImages:
    """Images with their names: as given on the command line, or paths of those in folders."""

    def __init__(self, names: Sequence[str]):
        self._failures = 0
        self._sources: list[tuple[str, ImageLike]] = []
        if names.count("-") > 1:
            raise ValueError("- is one image on standard input, which can be read only once.")
        for name in names:
            self._add(name)

    def outputs(self, program: ImageProgram) -> Iterator[tuple[list[str], Any]]:
        """Yields names, and the outputs of the program for their images: a tree of arrays (N, ...).

        Images that cannot be read, and those with an output that is not finite, are reported on
        standard error and left out.
        """
        for names, pixels in self._batches(program.preprocessing, program.batch_size):
            outputs = program.run(pixels)
            finite = finite_outputs(outputs)
            for name in itertools.compress(names, ~finite):
                self._fail(
                    f"{name}: the network gives NaN or infinite values. The training run may have "
                    "diverged."
                )
            if finite.any():
                yield (
                    list(itertools.compress(names, finite)),
                    jax.tree.map(operator.itemgetter(finite), outputs),
                )

    def _batches(
        self, preprocessing: BasePreprocessing, batch_size: int
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yields names, and pixels (N, H, W, C) with N from 1 to `batch_size`.

        Images that cannot be read are reported on standard error.
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
        """Exits with status 1 if any image had no result."""
        if self._failures:
            raise SystemExit(1)

    def _add(self, name: str) -> None:
        path = Path(name)
        if name == "-":
            self._sources.append(("standard input", sys.stdin.buffer.read()))
        elif path.is_dir():
            found = find_images(path)
            self._sources += [(str(path), path) for path in found]
            if not found:
                self._fail(f"There are no images in {name}.")
        else:
            self._sources.append((name, name))

    def _fail(self, message: str) -> None:
        self._failures += 1
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
