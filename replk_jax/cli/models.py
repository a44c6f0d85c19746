"""models: lists the models, or counts one part by part."""

import argparse

from replk_jax.accounting import summary
from replk_jax.cli.arguments import positive
from replk_jax.models import create_model, list_models


def add_parser(verbs) -> None:
    models = verbs.add_parser("models", help="list the models, or count one part by part")
    models.add_argument("name", nargs="?", help="a model; without it, all are listed")
    models.add_argument("--image-size", type=positive, default=224, help="pixels (224)")
    models.set_defaults(run=_models)


def _models(arguments: argparse.Namespace) -> None:
    if arguments.name:
        print(summary(create_model(arguments.name), arguments.image_size))
        return
    print(
        f"{'':14}{'parameters':>13}{'merged':>13}{'MACs, paper':>17}{'mmpretrain':>17}"
        "  kernels, channels"
    )
    for name in list_models():
        model = create_model(name)
        counts = summary(model, arguments.image_size)
        kernels, channels = (
            "-".join(map(str, values))
            for values in (model.architecture.kernel_sizes, model.architecture.channels)
        )
        print(
            f"{name:14}{counts.training.parameters:13,}{counts.merged.parameters:13,}"
            f"{counts.paper_flops:17,}{counts.mmpretrain_flops:17,}  {kernels}, {channels}"
        )
    size = arguments.image_size
    print(
        f"Multiply-adds (MACs) at {size} x {size}. Paper: the merged convolutions. mmpretrain: the "
        "training-time\nconvolutions, batch norms (5 for each output) and pooled values."
    )
