"""detect: the objects in images, as pictures, as a table and in COCO's result format."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from replk_jax.checkpoint import Checkpoint, load
from replk_jax.cli import images
from replk_jax.cli.argument_types import positive, user_path
from replk_jax.cli.arguments import add_force, check_output, reading
from replk_jax.cli.picture_folder import PictureFolder, write_jpeg
from replk_jax.cli.predict import read_names
from replk_jax.cli.text import printable
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.inference.detection_program import Objects, PreparedImage
from replk_jax.inference.detector import Detector, require_detector
from replk_jax.io.errors import naming
from replk_jax.io.files import json_text, replacing
from replk_jax.io.text import encodable
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.box_drawing import draw_objects, object_palette
from replk_jax.vision.coco_results import category_ids, coco_result
from replk_jax.vision.images import read_image, to_array

_THRESHOLD = 0.3


def add_parser(verbs) -> None:
    detect = verbs.add_parser(
        "detect",
        help="find objects in images",
        description="Prints the objects in each image: score, class and box. With --output it "
        "writes, for each image NAME, NAME_objects.jpg, the image with boxes, names, scores and "
        "masks. " + images.FAILURES,
    )
    images.add_arguments(detect, batch_size=4)
    detect.add_argument(
        "--output", type=user_path, metavar="DIR", help="the folder for the pictures"
    )
    detect.add_argument(
        "--json",
        type=user_path,
        metavar="FILE",
        help="to write: all objects in COCO's result format, each with the name of its class and "
        "of its image. An image_id is the number that is the name of the file, as in COCO, or else "
        "the position of the image from 1 on",
    )
    detect.add_argument(
        "--threshold",
        type=_probability,
        default=_THRESHOLD,
        help=f"show and write objects with higher scores ({_THRESHOLD})",
    )
    detect.add_argument(
        "--names",
        type=user_path,
        metavar="FILE",
        help="names of the classes, one per line, if the weights have none",
    )
    detect.add_argument(
        "--resize",
        type=positive,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="resize images to at most LONG x SHORT pixels, keeping the aspect ratio (as the "
        "weights or --like say)",
    )
    add_force(detect)
    detect.set_defaults(run=_detect)


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


class _Opened(NamedTuple):
    """An image as it is and as the network needs it."""

    pixels: np.ndarray | None  # without --output not needed
    prepared: PreparedImage


def _detect(arguments: argparse.Namespace) -> None:
    detector = _detector(arguments)
    named = images.NamedImages(arguments.images)
    pictures = None
    if arguments.output is not None:
        pictures = PictureFolder(arguments.output, named.images, ("_objects.jpg",), "search")
        pictures.check(arguments.force)
    if arguments.json is not None:
        check_output(arguments.json, arguments.force)
    print(f"preprocessing: {detector.protocol.in_words()}", file=sys.stderr, flush=True)
    palette = object_palette(detector.class_names)
    ids = _image_ids(named.images)
    results: list[dict[str, Any]] = []

    def prepare(source: images.NamedImage) -> _Opened:
        image = read_image(source.image, detector.protocol.channels, source.name, upright=True)
        pixels = None if pictures is None else to_array(image)
        return _Opened(pixels, detector.prepare(image, source.name))

    for batch in named.prepared(prepare, detector.batch_size):
        found = detector.detect([opened.prepared for _, opened in batch])
        for (source, opened), objects in zip(batch, found, strict=True):
            if not objects.is_finite:
                named.fail_not_finite(source.name)
                continue
            shown = objects.above(arguments.threshold)
            title = [source.name]
            if pictures is not None and opened.pixels is not None:
                (path,) = pictures.paths(source)
                write_jpeg(path, _picture(opened.pixels, shown, detector.class_names, palette))
                title.append(str(path))
            print(_table(title, shown, detector.class_names), flush=True)
            if arguments.json is not None:
                results += _results(source.name, ids[source], shown, detector.class_names)
    if arguments.json is not None:
        with replacing(arguments.json) as file:
            file.write(f"{json_text(results)}\n".encode())
        print(printable(f"{arguments.json}: {len(results):,} objects"))
    named.finish()


def _detector(arguments: argparse.Namespace) -> Detector:
    names = arguments.names and read_names(arguments.names)
    network = load(arguments.weights, **reading(arguments))
    with naming(arguments.weights):
        model = require_detector(network.model)
        return Detector(
            model,
            network.variables,
            _protocol(network, arguments),
            names or network.class_names,
            batch_size=arguments.batch_size,
        )


def _protocol(network: Checkpoint, arguments: argparse.Namespace) -> BasePreprocessing:
    """The preprocessing of the weights, with what the options change.

    Raises:
      ValueError: it is unknown.
    """
    limits = arguments.resize and tuple(arguments.resize)
    if network.preprocessing is None and limits:
        return DetectionProtocol(limits)
    known = network.resolve_preprocessing()
    if isinstance(known, DetectionProtocol) and limits:
        return dataclasses.replace(known, limits=limits)
    return known  # Detector says if it does not fit


def _image_ids(named: Sequence[images.NamedImage]) -> dict[images.NamedImage, int]:
    """The numbers in the names of the images, if each has one of its own; else their positions."""
    stems = [image.place.stem for image in named]
    numbers = {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}
    if len(numbers) == len(named):
        return {image: int(stem) for image, stem in zip(named, stems, strict=True)}
    return {image: position for position, image in enumerate(named, 1)}


def _picture(
    pixels: np.ndarray, objects: Objects, names: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    labels = [
        f"{names[index]} {score:.2f}"
        for index, score in zip(objects.classes, objects.scores, strict=True)
    ]
    masks = None if objects.cells is None else list(objects.masks())
    return draw_objects(pixels, objects.boxes, palette[objects.classes], labels, masks)


def _results(
    image: str, image_id: int, objects: Objects, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The objects of an image in COCO's format, with two names."""
    ids = category_ids(names)
    masks = [None] * len(objects.boxes) if objects.cells is None else objects.masks()
    each = zip(objects.boxes, objects.scores, objects.classes, masks, strict=True)
    for box, score, index, mask in each:
        result = coco_result(image_id, ids[int(index)], box, score, mask)
        yield result | {"category": encodable(names[int(index)]), "image": encodable(image)}


def _table(title: Sequence[str], objects: Objects, names: Sequence[str]) -> str:
    """A line for the image, and one for each object."""
    rows = [
        f"{score:9.2%}  {printable(names[index], 40):20}  "
        f"{' '.join(f'{value:7.1f}' for value in box)}"
        for box, score, index in zip(objects.boxes, objects.scores, objects.classes, strict=True)
    ]
    return "\n".join([" -> ".join(map(printable, title)), *(rows or ["  no objects"])])
