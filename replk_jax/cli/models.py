"""models: lists the models, or counts one part by part."""

import argparse

from replk_jax.cli.argument_types import positive
from replk_jax.models import create_model, list_models, pretrained
from replk_jax.models.summary import summary

_EXPLANATION = """\
Multiply-adds (MACs) of the merged convolutions for one image, as the papers count them. Top-1 is
the published accuracy on ImageNet-1K at that size, in per cent: of the first of the released
checkpoints, or (*) of a paper that released none."""


def add_parser(verbs) -> None:
    models = verbs.add_parser("models", help="list the models, or count one part by part")
    models.add_argument("name", nargs="?", help="a model; without it, all are listed")
    models.add_argument(
        "--image-size", type=positive, help="pixels (that of the published accuracy, else 224)"
    )
    models.set_defaults(run=_models)


def _models(arguments: argparse.Namespace) -> None:
    if arguments.name:
        model = create_model(arguments.name)
        size = arguments.image_size or _usual_size(pretrained.published_accuracy(arguments.name))
        print(summary(model, size))
        return
    print(f"{'':30}{'parameters':>13}{'merged':>13}{'MACs':>17}{'image':>7}  top-1")
    for name in list_models():
        published = pretrained.published_accuracy(name)
        size = arguments.image_size or _usual_size(published)
        counts = summary(create_model(name), size)
        print(
            f"{name:30}{counts.training.parameters:13,}{counts.merged.parameters:13,}"
            f"{counts.paper_flops:17,}{size:7}{_accuracy(published, size)}",
            flush=True,
        )
    print(_EXPLANATION)


def _usual_size(published: pretrained.Accuracy | None) -> int:
    return published.image_size if published else 224


def _accuracy(published: pretrained.Accuracy | None, size: int) -> str:
    if published is None or published.image_size != size:
        return ""
    return f"{published.top1:7.2f}{'' if published.released else ' *'}"
