"""bench: measures speed on the device at hand."""

import argparse
import contextlib
import dataclasses
import itertools
import math
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from replk_jax.benchmark import depthwise, detection_ops, targets, torchvision_peers
from replk_jax.benchmark.environment import describe_environment, format_environment
from replk_jax.benchmark.model import (
    benchmark_model,
    failures,
    format_report,
    structures_table,
)
from replk_jax.benchmark.network_programs import MODES, draw_inputs
from replk_jax.benchmark.profile import expect_no_trace, format_profile, profile_network
from replk_jax.benchmark.tune import tune
from replk_jax.cli.argument_types import positive, positive_number, user_path
from replk_jax.cli.arguments import check_file, write_json
from replk_jax.models import create_model
from replk_jax.ops.depthwise import measurements
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS


def add_parser(verbs) -> None:
    bench = verbs.add_parser("bench", help="measure speed on the device at hand")
    subjects = bench.add_subparsers(metavar="SUBJECT", dest="subject", required=True)
    _add_model(subjects.add_parser("model", help="a whole network, inference and training"))
    _add_profile(subjects.add_parser("profile", help="the time of each operation of a network"))
    _add_depthwise(subjects.add_parser("depthwise", help="the depthwise convolution alone"))
    _add_detection_ops(subjects.add_parser("detection-ops", help="NMS and RoIAlign alone"))


def _add_model(model: argparse.ArgumentParser) -> None:
    model.add_argument(
        "--model",
        nargs="+",
        default=["replknet_31b"],
        metavar="NAME",
        help="one or several; several are compared in a table of both structures (replknet_31b)",
    )
    model.add_argument(
        "--batch-size", type=positive, nargs="+", default=[1], help="images at once (1)"
    )
    _add_settings(model)
    model.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="what to time (all)"
    )
    model.add_argument(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=(),
        help="of the depthwise convolutions, measured in addition to the operator's own choice",
    )
    model.add_argument(
        "--peer",
        nargs="+",
        default=(),
        metavar="NAME",
        help="networks in PyTorch to run in turns with it: torch (the same), timm:NAME; with "
        "+compile behind it by torch.compile",
    )
    model.add_argument(
        "--seconds", type=positive_number, default=10.0, help="to repeat each mode (10)"
    )
    model.add_argument(
        "--json", type=user_path, metavar="FILE", help="write the report there as JSON"
    )
    model.set_defaults(run=_bench_model)


def _add_profile(profile: argparse.ArgumentParser) -> None:
    profile.add_argument("--model", default="replknet_31b", metavar="NAME", help="(replknet_31b)")
    profile.add_argument("--batch-size", type=positive, default=1, help="images at once (1)")
    _add_settings(profile)
    profile.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=("inference-merged", "training"),
        help="what to trace (inference-merged training)",
    )
    profile.add_argument(
        "--implementation",
        choices=IMPLEMENTATIONS,
        help="of the depthwise convolutions (the operator's own choice)",
    )
    profile.add_argument("--calls", type=positive, default=5, help="to trace of each mode (5)")
    profile.add_argument(
        "--lines", type=positive, default=15, help="of each table that is printed (15)"
    )
    profile.add_argument(
        "--trace",
        type=user_path,
        metavar="FOLDER",
        help="keep the traces there, for https://ui.perfetto.dev or XProf",
    )
    profile.add_argument(
        "--json", type=user_path, metavar="FILE", help="write all operations there as JSON"
    )
    profile.set_defaults(run=_profile_model)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the network, which `model` and `profile` share."""
    parser.add_argument("--image-size", type=positive, default=224, help="pixels (224)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation"
    )


def _add_depthwise(layer: argparse.ArgumentParser) -> None:
    layer.add_argument(
        "--suite", choices=depthwise.SUITES, help="layers (cpu on a CPU, paper elsewhere)"
    )
    layer.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of all arrays (float32 on a CPU, bfloat16 elsewhere; to tune elsewhere, both)",
    )
    layer.add_argument("--batch-size", type=positive, help="in place of those of the suite")
    layer.add_argument(
        "--implementations",
        nargs="*",
        choices=IMPLEMENTATIONS,
        default=("xla", "dft"),
        help="measured in addition to the operator's own choice (xla dft)",
    )
    layer.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="PyTorch in the same process, where it is installed (yes)",
    )
    layer.add_argument(
        "--seconds", type=positive_number, help="to repeat each program (1; to tune 0.05)"
    )
    layer.add_argument(
        "--limit",
        type=positive_number,
        help="seconds of one call; contenders that are expected to take longer are skipped "
        "(60 on a CPU, 2 elsewhere)",
    )
    layer.add_argument(
        "--minutes",
        type=positive_number,
        help="after which no new layer starts (no limit; to tune 10 on a CPU, 3 elsewhere)",
    )
    layer.add_argument(
        "--json", type=user_path, metavar="FILE", help="write the report there as JSON"
    )
    layer.add_argument(
        "--tune",
        action="store_true",
        help="verify the implementations, measure which is fastest for what, and choose by that "
        "from now on",
    )
    layer.add_argument(
        "--table", type=user_path, metavar="FILE", help="write what --tune measures there instead"
    )
    layer.set_defaults(run=_bench_depthwise)


def _add_detection_ops(operators: argparse.ArgumentParser) -> None:
    operators.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="torchvision in the same process, where it is installed (yes)",
    )
    operators.add_argument(
        "--seconds", type=positive_number, default=1.0, help="to repeat each program (1)"
    )
    operators.add_argument(
        "--json", type=user_path, metavar="FILE", help="write the report there as JSON"
    )
    operators.set_defaults(run=_bench_detection_ops)


def _bench_model(arguments: argparse.Namespace) -> None:
    check_file(arguments.json)
    # A cached program would have no compilation time.
    jax.config.update("jax_enable_compilation_cache", False)
    models = list(dict.fromkeys(arguments.model))
    for name in models:
        create_model(name)  # raises for an unknown name before the measurements
    report = {"environment": describe_environment(), "models": []}
    print(format_environment(report["environment"]))
    for name, batch_size in itertools.product(models, arguments.batch_size):
        measured = benchmark_model(
            name,
            image_size=arguments.image_size,
            batch_size=batch_size,
            dtype=arguments.dtype,
            modes=tuple(arguments.modes),
            implementations=tuple(arguments.implementations),
            peers=tuple(arguments.peer),
            seconds=arguments.seconds,
        )
        print(format_report(measured), flush=True)
        # At once, so that it is kept if a later one takes too long.
        report["models"].append(measured)
        write_json(report, arguments.json)
    if len(models) > 1 and {"inference", "inference-merged"} <= set(arguments.modes):
        for batch_size in arguments.batch_size:
            alike = [each for each in report["models"] if each["batch_size"] == batch_size]
            print(f"In batches of {batch_size}:\n{structures_table(alike)}")
    _exit_if_any(failures(report["models"]))


def _profile_model(arguments: argparse.Namespace) -> None:
    check_file(arguments.json)
    modes = tuple(dict.fromkeys(arguments.modes))
    for mode in modes if arguments.trace else ():
        expect_no_trace(arguments.trace / mode)
    # A cached program may have the names of another one.
    jax.config.update("jax_enable_compilation_cache", False)
    model = create_model(
        arguments.model,
        dtype=jnp.dtype(arguments.dtype),
        implementation=arguments.implementation,
    )
    shown = "model", "image_size", "batch_size", "dtype", "implementation"
    settings = {name: getattr(arguments, name) for name in shown}
    report = {"environment": describe_environment(), **settings, "profiles": []}
    print(format_environment(report["environment"]))
    inputs = draw_inputs(model, arguments.batch_size, arguments.image_size)
    with contextlib.ExitStack() as stack:
        folder = arguments.trace
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for mode in modes:
            profile = profile_network(mode, model, *inputs, folder / mode, arguments.calls)
            head = ", ".join([arguments.model, mode, f"batch {arguments.batch_size}"])
            print(f"{head}: {format_profile(profile, arguments.lines)}", flush=True)
            report["profiles"].append({"mode": mode, **profile.as_dict()})
            write_json(report, arguments.json)


def _bench_depthwise(arguments: argparse.Namespace) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    if arguments.tune:
        _tune(arguments, on_cpu)
        return
    if arguments.table:
        raise ValueError("--table is the output of --tune; it needs --tune.")
    check_file(arguments.json)
    benchmark = depthwise.Benchmark(
        dtype=arguments.dtype or ("float32" if on_cpu else "bfloat16"),
        implementations=tuple(arguments.implementations),
        peers=arguments.peers,
        seconds=1.0 if arguments.seconds is None else arguments.seconds,
        limit=arguments.limit or (60.0 if on_cpu else 2.0),
    )
    suite = arguments.suite or ("cpu" if on_cpu else "paper")
    layers = depthwise.layers_of(suite, arguments.batch_size)
    report = {
        "suite": suite,
        **dataclasses.asdict(benchmark),
        "environment": describe_environment(),
        "rows": [],
    }
    print(format_environment(report["environment"]))
    print(f"suite {suite}, {benchmark.dtype}, times of one call\n{depthwise.HEADER}")
    rows = []
    for row in benchmark.run(layers, arguments.minutes or math.inf):
        print(row, flush=True)
        rows.append(row)
        # At once, so that it is kept if a later one takes too long.
        report["rows"].append(row.as_dict())
        write_json(report, arguments.json)
    for line in targets.conclusions(rows, layers, device.device_kind, benchmark.dtype):
        print(line)
    _exit_if_any(depthwise.failures(rows))


def _bench_detection_ops(arguments: argparse.Namespace) -> None:
    check_file(arguments.json)
    jax.config.update("jax_enable_compilation_cache", False)
    benchmark = detection_ops.Benchmark(seconds=arguments.seconds, peers=arguments.peers)
    environment = {**describe_environment(), "torchvision": torchvision_peers.describe()}
    report = {**dataclasses.asdict(benchmark), "environment": environment, "rows": []}
    print(format_environment(environment), environment["torchvision"], sep=", ")
    print(f"float32, times of one call\n{detection_ops.HEADER}")
    rows = []
    for row in benchmark.run():
        print(row, flush=True)
        rows.append(row)
        # At once, so that it is kept if a later one takes too long.
        report["rows"].append(row.as_dict())
        write_json(report, arguments.json)
    _exit_if_any(detection_ops.failures(rows))


def _exit_if_any(failed: list[str]) -> None:
    """Exits with an error if a measurement failed, after the report of the others."""
    if failed:
        sys.exit("\n".join(["error: not all could be measured.", *failed]))


def _tune(arguments: argparse.Namespace, on_cpu: bool) -> None:
    for name in ("suite", "batch_size", "limit", "json"):
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(
                f"--tune measures a grid of its own and writes a table: no --{option}."
            )
    check_file(arguments.table)
    path = arguments.table or measurements.own_path(jax.devices()[0].device_kind)
    dtypes = ("float32",) if on_cpu else ("bfloat16", "float32")
    lines = tune(
        path,
        (arguments.dtype,) if arguments.dtype else dtypes,
        minutes=arguments.minutes or (10.0 if on_cpu else 3.0),
        seconds=0.05 if arguments.seconds is None else arguments.seconds,
    )
    for line in lines:
        print(line, flush=True)
