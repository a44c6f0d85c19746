"""A whole network: images per second and compile time, beside PyTorch's."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.network_programs import MODES, draw_inputs, network_program
from replk_jax.benchmark.timing import Contender, Timing, compete
from replk_jax.models import create_model

OURS = "replk_jax"

# What is measured in turns: both structures, since their ratio is what one wants to know.
_TOGETHER = (("inference", "inference-merged"), ("gradients",), ("training",))


def benchmark_model(
    name: str,
    *,
    image_size: int = 224,
    batch_size: int = 1,
    dtype: str = "float32",
    modes: tuple[str, ...] = MODES,
    implementations: tuple[str, ...] = (),
    peers: tuple[str, ...] = (),
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Times a model on the default device, on one batch that stays there.

    What cannot be made or run, for lack of memory or another reason, is told in the report, with
    what could. JAX's persistent compilation cache must be off for the compile time to mean
    anything; on an accelerator, programs that run in turns are compiled side by side.

    Args:
      name: of the model.
      image_size: height and width.
      batch_size: images at once.
      dtype: of the computation; parameters are float32, as they are in training.
      modes: what to time, out of `MODES`; see `network_program`.
      implementations: of the depthwise convolutions, which run in turns with the operator's own
        choice.
      peers: networks in PyTorch that run in turns with the model: "torch", the same one if it is
        a RepLKNet; "timm:NAME", a model of timm's; "+compile" behind either: by `torch.compile`.
      seconds: how long to repeat each; at least three runs.

    Returns:
      A dictionary fit for JSON: the settings and `timings`, each with a `failure` or with figures.
      `memory_bytes` are those that XLA sets aside for arguments, results and what lies between.

    Raises:
      ValueError: an unknown model, mode or peer.
    """
    unknown = sorted(set(modes) - set(MODES))
    if unknown:
        raise ValueError(f"Unknown mode {', '.join(unknown)}; known: {', '.join(MODES)}.")
    model = create_model(name, dtype=jnp.dtype(dtype))
    for peer in peers:
        torch_peers.check_network(peer, model.architecture)
    variables, images = draw_inputs(model, batch_size, image_size)
    platform = jax.devices()[0].platform
    absent = torch_peers.unsupported_reason(platform) if peers else None

    def contenders(mode: str) -> dict[tuple[str, str], Contender]:
        ours = {OURS: model}
        for implementation in implementations:
            ours[f"{OURS} with {implementation}"] = model.clone(implementation=implementation)
        found = {
            (mode, name): Contender(
                partial(network_program, mode, network, variables, images),
                concurrent=platform != "cpu",
            )
            for name, network in ours.items()
        }
        # timm's networks have nothing to merge: one of the two kinds of inference is enough.
        twice = mode == "inference" and "inference-merged" in modes
        for peer in () if absent else peers:
            if not (twice and torch_peers.is_timm(peer)):
                prepare = partial(
                    torch_peers.network_program,
                    peer,
                    mode,
                    model.architecture,
                    image_size=image_size,
                    batch_size=batch_size,
                    dtype=dtype,
                    platform=platform,
                )
                found[mode, peer] = Contender(prepare)
        return found

    timings = []
    for together in _TOGETHER:
        wanted = [contenders(mode) for mode in together if mode in modes]
        results = compete({k: v for found in wanted for k, v in found.items()}, seconds)
        for (mode, contender), result in results.items():
            timings.append(_timing(mode, contender, result, batch_size))
    return {
        "model": name,
        "image_size": image_size,
        "batch_size": batch_size,
        "dtype": dtype,
        "absent": absent,
        "timings": timings,
    }


def format_report(report: dict[str, Any]) -> str:
    """The report of `benchmark_model` as text."""
    wide = 1 + max(len(timing["contender"]) for timing in report["timings"])
    lines = [
        f"{report['model']}, {report['image_size']} x {report['image_size']}, batch "
        f"{report['batch_size']}, {report['dtype']}",
        f"{'':18}{'':{wide}}{'images/s':>10}{'s/step':>10}{'least':>10}{'compile s':>11}{'MB':>8}"
        f"{'runs':>6}",
    ]
    rates = {}
    for timing in report["timings"]:
        mode, contender = timing["mode"], timing["contender"]
        head = f"{mode:18}{contender:{wide}}"
        if timing["failure"]:
            lines.append(f"{head} not measured: {timing['failure'].splitlines()[0]}")
            continue
        rates[mode, contender] = timing["images_per_second"]
        compiled, memory = timing["compile_seconds"], timing["memory_bytes"]
        lines.append(
            f"{head}{timing['images_per_second']:10.2f}{timing['median']:10.4f}"
            f"{timing['minimum']:10.4f}{'' if compiled is None else f'{compiled:.1f}':>11}"
            f"{'' if memory is None else f'{memory / 1e6:.0f}':>8}{timing['runs']:6}"
        )
    if {("inference", OURS), ("inference-merged", OURS)} <= rates.keys():
        ratio = rates["inference-merged", OURS] / rates["inference", OURS]
        lines.append(f"re-parameterized over training-time inference: {ratio:.2f} times as fast")
    for (mode, contender), rate in rates.items():
        if contender != OURS and (mode, OURS) in rates:
            lines.append(f"{mode}: {rates[mode, OURS] / rate:.2f} times as fast as {contender}")
    if report["absent"]:
        lines.append(f"No peer was measured. {report['absent']}")
    return "\n".join(lines)


def failures(reports: Sequence[dict[str, Any]]) -> list[str]:
    """What of our own could not be measured, a line for each."""
    return [
        f"{report['model']}, batch {report['batch_size']}, {timing['mode']}: {timing['failure']}"
        for report in reports
        for timing in report["timings"]
        if timing["contender"] == OURS and timing["failure"]
    ]


def structures_table(reports: Sequence[dict[str, Any]]) -> str:
    """What re-parameterization brings, as a table in Markdown with a line for each model."""
    lines = [
        "| model | images/s, training-time | re-parameterized | ratio | MB, training-time | "
        "re-parameterized |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        ours = {t["mode"]: t for t in report["timings"] if t["contender"] == OURS}
        before, after = ours["inference"], ours["inference-merged"]
        if before["failure"] or after["failure"]:
            continue
        rates = [timing["images_per_second"] for timing in (before, after)]
        memory = [timing["memory_bytes"] / 1e6 for timing in (before, after)]
        lines.append(
            f"| `{report['model']}` | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} "
            f"| {memory[0]:.0f} | {memory[1]:.0f} |"
        )
    return "\n".join(lines)


def _timing(
    mode: str, contender: str, result: Timing | Exception, batch_size: int
) -> dict[str, Any]:
    """One entry of the report's `timings`."""
    head = {"mode": mode, "contender": contender}
    if isinstance(result, Exception):
        return {**head, "failure": f"{type(result).__name__}: {result}"}
    figures = dataclasses.asdict(result)
    return {**head, **figures, "images_per_second": batch_size / result.median, "failure": None}
