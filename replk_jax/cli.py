"""The verbs of `python -m replk_jax`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from replk_jax.accounting import summary
from replk_jax.benchmark import MODES, benchmark_model, format_report
from replk_jax.models import create_model, list_models


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb; a mistake of the user's ends with one line and exit status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parser.exit(2, f"error: out of memory; use a smaller batch.\n{error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replk_jax", description=__doc__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    models = verbs.add_parser("models", help="list the models, or count one part by part")
    models.add_argument("name", nargs="?", help="a model; without it, all are listed")
    models.add_argument("--image-size", type=_positive, default=224, help="pixels (224)")
    models.set_defaults(run=_models)

    bench = verbs.add_parser("bench", help="measure speed on the device at hand")
    subjects = bench.add_subparsers(metavar="SUBJECT", required=True)
    model = subjects.add_parser("model", help="a whole network, inference and training")
    model.add_argument("--model", default="replknet_31b", help="its name (replknet_31b)")
    model.add_argument("--image-size", type=_positive, default=224, help="pixels (224)")
    model.add_argument("--batch-size", type=_positive, default=1, help="images at once (1)")
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation"
    )
    model.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="what to time (all)"
    )
    model.add_argument("--seconds", type=float, default=10.0, help="to repeat each mode (10)")
    model.add_argument("--json", type=Path, metavar="FILE", help="write the report there as JSON")
    model.set_defaults(run=_bench_model)
    return parser


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


def _bench_model(arguments: argparse.Namespace) -> None:
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(
            f"There is no folder {arguments.json.parent} to write {arguments.json} to."
        )
    # A program that is found in the cache would not be compiled.
    jax.config.update("jax_enable_compilation_cache", False)
    report = benchmark_model(
        arguments.model,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        modes=tuple(arguments.modes),
        seconds=arguments.seconds,
    )
    print(format_report(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
