"""segment: the class of every pixel of images, as pictures and as shares."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from replk_jax.checkpoint import Checkpoint, load
from replk_jax.cli import images
from replk_jax.cli.argument_types import positive, positive_number, user_path
from replk_jax.cli.arguments import add_force, reading
from replk_jax.cli.predict import read_names
from replk_jax.cli.segmentation_pictures import Pictures
from replk_jax.cli.text import printable
from replk_jax.inference.segmentation_program import PreparedImage
from replk_jax.inference.segmenter import Segmenter, require_segmenter
from replk_jax.io.errors import naming
from replk_jax.io.files import json_text
from replk_jax.io.text import encodable
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.images import read_image, to_array
from replk_jax.vision.label_drawing import shares

_SHOWN_CLASSES = 10


def add_parser(verbs) -> None:
    segment = verbs.add_parser(
        "segment",
        help="find the class of every pixel of images",
        description="Prints the shares of the classes in each image. With --output it writes, for "
        "each image NAME, NAME.png, whose values are the classes and whose palette has their "
        "colours, and NAME_overlay.jpg, the image with the colours over it and a legend. "
        + images.FAILURES,
    )
    images.add_arguments(segment, batch_size=8)
    segment.add_argument(
        "--output", type=user_path, metavar="DIR", help="the folder for the pictures"
    )
    segment.add_argument(
        "--names",
        type=user_path,
        metavar="FILE",
        help="names of the classes, one per line, if the weights have none",
    )
    segment.add_argument("--json", action="store_true", help="one line of JSON per image")
    test = segment.add_argument_group(
        "test protocol", "By default that of the weights or of --like."
    )
    test.add_argument(
        "--resize",
        type=positive,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="resize images to at most LONG x SHORT pixels, keeping the aspect ratio",
    )
    test.add_argument("--window", type=positive, help="slide a window of so many pixels a side")
    test.add_argument("--stride", type=positive, help="of the window (two thirds of it)")
    test.add_argument("--whole", action="store_true", help="no window")
    test.add_argument(
        "--ratios", type=positive_number, nargs="+", help="average scales: these times --resize"
    )
    test.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="average each scale with the mirrored image",
    )
    add_force(segment)
    segment.set_defaults(run=_segment)


class _Opened(NamedTuple):
    """An image as it is and as the network needs it."""

    pixels: np.ndarray | None  # without --output not needed
    prepared: PreparedImage


def _segment(arguments: argparse.Namespace) -> None:
    if arguments.whole and (arguments.window or arguments.stride):
        raise ValueError("--whole excludes --window and --stride.")
    segmenter = _segmenter(arguments)
    named = images.NamedImages(arguments.images)
    pictures = None
    if arguments.output is not None:
        pictures = Pictures(
            arguments.output, named.images, segmenter.class_names, segmenter.palette
        )
        pictures.check(arguments.force)
    print(f"protocol: {segmenter.protocol.in_words()}", file=sys.stderr, flush=True)

    def prepare(source: images.NamedImage) -> _Opened:
        image = read_image(source.image, segmenter.protocol.channels, source.name, upright=True)
        pixels = None if pictures is None else to_array(image)
        return _Opened(pixels, segmenter.prepare(image, source.name))

    for batch in named.prepared(prepare, segmenter.batch_size):
        results = segmenter.segment([opened.prepared for _, opened in batch])
        for (source, opened), result in zip(batch, results, strict=True):
            if not result.is_finite:
                named.fail_not_finite(source.name)
                continue
            written: dict[str, str] = {}
            if pictures is not None and opened.pixels is not None:
                paths = pictures.write(source, opened.pixels, result.classes)
                written |= zip(("class_map", "overlay"), map(str, paths), strict=True)
            show = _json if arguments.json else _table
            print(show(source.name, result.classes, segmenter.class_names, written), flush=True)
    named.finish()


def _segmenter(arguments: argparse.Namespace) -> Segmenter:
    names = arguments.names and read_names(arguments.names)
    network = load(arguments.weights, **reading(arguments))
    with naming(arguments.weights):
        model = require_segmenter(network.model)
        return Segmenter(
            model,
            network.variables,
            _protocol(network, arguments),
            names or network.class_names,
            batch_size=arguments.batch_size,
        )


def _protocol(network: Checkpoint, arguments: argparse.Namespace) -> BasePreprocessing:
    """The protocol of the weights, with what the options change.

    Raises:
      ValueError: it is unknown, or the options make no sense.
    """
    if network.preprocessing is None and arguments.resize:
        known = SegmentationProtocol(tuple(arguments.resize))
    else:
        known = network.resolve_preprocessing()
    if not isinstance(known, SegmentationProtocol):
        return known  # of which Segmenter says that it does not fit
    changes: dict[str, Any] = {}
    if arguments.resize:
        changes["limits"] = tuple(arguments.resize)
    if arguments.whole:
        changes |= {"window": None, "stride": None}
    if arguments.window:
        changes |= {"window": arguments.window, "stride": -(-arguments.window * 2 // 3)}
    if arguments.stride:
        changes["stride"] = arguments.stride
    if arguments.ratios:
        changes["ratios"] = tuple(arguments.ratios)
    if arguments.flip is not None:
        changes["flip"] = arguments.flip
    return dataclasses.replace(known, **changes)


def _json(image: str, classes: np.ndarray, names: Sequence[str], written: Mapping[str, str]) -> str:
    """One line of JSON, without lone surrogates, which many parsers reject."""
    height, width = classes.shape
    found = [
        {"index": index, "name": encodable(names[index]), "share": share}
        for index, share in shares(classes).items()
    ]
    paths = {kind: encodable(path) for kind, path in written.items()}
    report = {"image": encodable(image), "width": width, "height": height, "classes": found}
    return json_text(report | paths)


def _table(
    image: str, classes: np.ndarray, names: Sequence[str], written: Mapping[str, str]
) -> str:
    found = list(shares(classes).items())
    rows = [
        f"{share:9.2%}  {index:5}  {printable(names[index], 80)}"
        for index, share in found[:_SHOWN_CLASSES]
    ]
    if others := found[_SHOWN_CLASSES:]:
        total = sum(share for _, share in others)
        rows.append(f"{total:9.2%}  in {len(others)} other classes")
    title = " -> ".join([printable(image), *map(printable, written.values())])
    return "\n".join([title, *rows])
