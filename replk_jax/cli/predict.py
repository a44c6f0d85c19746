"""predict: what images show."""

import argparse
import json
from pathlib import Path

from replk_jax.classifier import Classifier, Prediction
from replk_jax.cli import images
from replk_jax.cli.arguments import positive
from replk_jax.cli.text import printable
from replk_jax.text import encodable


def add_parser(verbs) -> None:
    predict = verbs.add_parser(
        "predict", help="name what images show", description=images.UNREADABLE
    )
    images.add_arguments(predict)
    predict.add_argument("--top", type=positive, default=5, help="classes to name (5)")
    predict.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line, where the weights come without them",
    )
    predict.add_argument("--json", action="store_true", help="a line of JSON for each image")
    predict.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    class_names = arguments.names and _read_names(arguments.names)
    classifier = Classifier.from_file(
        arguments.weights,
        class_names=class_names,
        preprocessing=arguments.preprocessing,
        prefer_ema=arguments.ema,
        batch_size=arguments.batch_size,
    )
    named = images.NamedImages(arguments.images)
    show = _json if arguments.json else _table
    for names, pixels in named.batches(classifier.preprocessing, classifier.batch_size):
        best = classifier.best(classifier.run(pixels), arguments.top)
        for name, predictions in zip(names, best, strict=True):
            print(show(name, predictions), flush=True)
    named.finish()


def _read_names(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
      ValueError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): save "
            "it in that encoding, with one name a line."
        ) from error


def _json(image: str, predictions: list[Prediction]) -> str:
    """One line of JSON, without the lone surrogates that many parsers do not take."""
    named = [{**p._asdict(), "name": encodable(p.name)} for p in predictions]
    return json.dumps({"image": encodable(image), "predictions": named})


def _table(image: str, predictions: list[Prediction]) -> str:
    rows = [f"{p.score:9.2%}  {p.index:5}  {printable(p.name, 80)}" for p in predictions]
    return "\n".join([printable(image), *rows])
