"""Times a network: images per second and compile time, optionally next to PyTorch networks."""

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

# Modes whose programs are interleaved: both structures, so that their ratio is accurate.
_MODE_GROUPS = (("inference", "inference-merged"), ("gradients",), ("training",))


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
    """Times a model on the default device, with one batch that stays in its memory.

    Programs that cannot be compiled or run, or that compute NaN, are reported as failures; the
    others are still timed. The compile times are meaningful only without JAX's persistent
    compilation cache. On an accelerator, interleaved programs are compiled concurrently.

    Args:
      name: of the model.
      image_size: height and width in pixels.
      batch_size: number of images.
      dtype: of the computation; the parameters are float32, as in training.
      modes: what to time, a subset of `MODES`; see `network_program`.
      implementations: of the depthwise convolutions, timed in addition to the default choice.
      peers: PyTorch networks to time as well: "torch", the same network if it is a RepLKNet;
        "timm:NAME", a model of timm. A suffix "+compile" applies `torch.compile`.
      seconds: how long to repeat each program; at least three runs.

    Returns:
      A dictionary for JSON: the settings and `timings`, each with a `failure` or with times.
      `memory_bytes` is what XLA allocates for arguments, results and temporaries.

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
        # A timm network has one structure: it is not timed again for the second inference mode.
        repeated = mode == "inference" and "inference-merged" in modes
        for peer in () if absent else peers:
            if not (repeated and torch_peers.is_timm(peer)):
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
    for group in _MODE_GROUPS:
        by_mode = [contenders(mode) for mode in group if mode in modes]
        results = compete({k: v for found in by_mode for k, v in found.items()}, seconds)
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
    width = 1 + max(len(timing["contender"]) for timing in report["timings"])
    lines = [
        f"{report['model']}, {report['image_size']} x {report['image_size']}, batch "
        f"{report['batch_size']}, {report['dtype']}",
        f"{'':18}{'':{width}}{'images/s':>10}{'s/step':>10}{'minimum':>10}{'compile s':>11}"
        f"{'MB':>8}{'runs':>6}",
    ]
    rates = {}
    for timing in report["timings"]:
        mode, contender = timing["mode"], timing["contender"]
        head = f"{mode:18}{contender:{width}}"
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
        lines.append(f"re-parameterized inference: {ratio:.2f} times as fast as training-time")
    for (mode, contender), rate in rates.items():
        if contender != OURS and (mode, OURS) in rates:
            lines.append(f"{mode}: {rates[mode, OURS] / rate:.2f} times as fast as {contender}")
    if report["absent"]:
        lines.append(f"No peer was measured. {report['absent']}")
    return "\n".join(lines)


def failures(reports: Sequence[dict[str, Any]]) -> list[str]:
    """The measurements of the models themselves that failed, one line each."""
    return [
        f"{report['model']}, batch {report['batch_size']}, {timing['mode']}: {timing['failure']}"
        for report in reports
        for timing in report["timings"]
        if timing["contender"] == OURS and timing["failure"]
    ]


def structures_table(reports: Sequence[dict[str, Any]]) -> str:
    """The speed and memory of both structures, as a Markdown table with one row per model."""
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
    """An entry of the report's `timings`."""
    head = {"mode": mode, "contender": contender}
    if isinstance(result, Exception):
        return {**head, "failure": f"{type(result).__name__}: {result}"}
    figures = dataclasses.asdict(result)
    return {**head, **figures, "images_per_second": batch_size / result.median, "failure": None}
