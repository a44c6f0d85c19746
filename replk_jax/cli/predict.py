"""predict: what images show."""

import argparse
import json
from pathlib import Path

from replk_jax.classifier import Classifier, Prediction
from replk_jax.cli import images
from replk_jax.cli.arguments import positive
from replk_jax.cli.text import printable


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
    class_names = arguments.names and arguments.names.read_text("utf-8").splitlines()
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


def _json(image: str, predictions: list[Prediction]) -> str:
    return json.dumps({"image": image, "predictions": [p._asdict() for p in predictions]})


def _table(image: str, predictions: list[Prediction]) -> str:
    rows = [f"{p.score:9.2%}  {p.index:5}  {printable(p.name, 80)}" for p in predictions]
    return "\n".join([printable(image), *rows])
