"""predict: classifies images."""

import argparse
from pathlib import Path

from replk_jax.cli import images
from replk_jax.cli.argument_types import positive, user_path
from replk_jax.cli.arguments import reading
from replk_jax.cli.text import printable
from replk_jax.inference.classifier import Classifier, Prediction
from replk_jax.io.files import json_text
from replk_jax.io.text import encodable


def add_parser(verbs) -> None:
    predict = verbs.add_parser("predict", help="classify images", description=images.FAILURES)
    images.add_arguments(predict)
    predict.add_argument("--top", type=positive, default=5, help="classes to name (5)")
    predict.add_argument(
        "--names",
        type=user_path,
        metavar="FILE",
        help="names of the classes, one per line, if the weights have none",
    )
    predict.add_argument("--json", action="store_true", help="one line of JSON per image")
    predict.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    classifier = _classifier(arguments)
    named = images.NamedImages(arguments.images)
    show = _json if arguments.json else _table
    for names, logits in named.outputs(classifier):
        best = classifier.best(logits, arguments.top)
        for name, predictions in zip(names, best, strict=True):
            print(show(name, predictions), flush=True)
    named.finish()


def _classifier(arguments: argparse.Namespace) -> Classifier:
    names = arguments.names and read_names(arguments.names)
    classifier = Classifier.from_file(
        arguments.weights, **reading(arguments), batch_size=arguments.batch_size
    )
    if names:
        count = len(classifier.class_names)
        if len(names) != count:
            raise ValueError(
                f"{arguments.weights} has {count} classes; got {len(names)} names in "
                f"{arguments.names}. Write one name per class."
            )
        classifier.class_names = tuple(names)
    return classifier


def read_names(path: Path) -> list[str]:
    """The names in a text file, one per line, stripped.

    Blank lines at the end are ignored.

    Raises:
      ValueError: not UTF-8, no names, or a blank line before the last name.
      OSError: it cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {error.object[error.start]:#x}"
        raise ValueError(f"{path} is not text in UTF-8 ({byte}); save it as such.") from error
    if not text.strip():
        raise ValueError(f"{path} has no names; write one name of a class per line.")
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        number = names.index("") + 1
        raise ValueError(f"{path}: line {number} is blank; write one name of a class per line.")
    return names


def _json(image: str, predictions: list[Prediction]) -> str:
    """One line of JSON, without lone surrogates, which many parsers reject."""
    named = [{**p._asdict(), "name": encodable(p.name)} for p in predictions]
    return json_text({"image": encodable(image), "predictions": named})


def _table(image: str, predictions: list[Prediction]) -> str:
    rows = [f"{p.score:9.2%}  {p.index:5}  {printable(p.name, 80)}" for p in predictions]
    return "\n".join([printable(image), *rows])
