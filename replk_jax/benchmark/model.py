"""A whole network: images per second and compile time, beside PyTorch's."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.accounting import planned_memory
from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.timing import Contender, Program, Timing, compete
from replk_jax.models import create_model
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import reparameterize

MODES = ("inference", "inference-merged", "gradients", "training")
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
    peers: tuple[str, ...] = (),
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Times a model on the default device, on one batch that stays there.

    The weights are random, which speed does not depend on. "gradients" is forward and backward
    of the training-time structure; a "training" step adds stochastic depth and AdamW, and gives
    its memory to the next. JAX's persistent compilation cache must be off for the compile time
    to mean anything.

    Args:
      name: of the model.
      image_size: height and width.
      batch_size: images at once.
      dtype: of the computation; parameters are float32, as they are in training.
      modes: what to time, out of `MODES`.
      peers: networks in PyTorch that run in turns with the model, in all modes but "training":
        "torch", the same one if it is a RepLKNet; "timm:NAME", a model of timm's; "+compile"
        behind either: by `torch.compile`.
      seconds: how long to repeat each; at least three runs.

    Returns:
      A dictionary fit for JSON: the settings and `timings`, whose `memory_bytes` are those that
      XLA sets aside for arguments, results and what lies between.

    Raises:
      ValueError: an unknown model, mode or peer.
    """
    unknown = sorted(set(modes) - set(MODES))
    if unknown:
        raise ValueError(f"Unknown mode {', '.join(unknown)}; known: {', '.join(MODES)}.")
    model = create_model(name, dtype=jnp.dtype(dtype))
    for peer in peers:
        torch_peers.check_network(peer, model.architecture)
    variables, images = _random_inputs(model, batch_size, image_size)
    platform = jax.devices()[0].platform
    absent = torch_peers.refuses(platform) if peers else None

    def contenders(mode: str) -> dict[tuple[str, str], Contender]:
        ours = Contender(partial(_program, mode, model, variables, images))
        found = {(mode, OURS): ours}
        if mode in torch_peers.NETWORK_MODES and not absent:
            for peer in peers:
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
            if contender == OURS and isinstance(result, Exception):
                raise result
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
    lines = [
        f"{report['model']}, {report['image_size']} x {report['image_size']}, batch "
        f"{report['batch_size']}, {report['dtype']}",
        f"{'':50}{'images/s':>10}{'s/step':>10}{'least':>10}{'compile s':>11}{'MB':>8}{'runs':>6}",
    ]
    rates = {}
    for timing in report["timings"]:
        mode, contender = timing["mode"], timing["contender"]
        head = f"{mode:18}{contender:32}"
        if timing["failure"]:
            lines.append(f"{head} not measured: {timing['failure']}")
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
        if contender != OURS:
            lines.append(f"{mode}: {rates[mode, OURS] / rate:.2f} times as fast as {contender}")
    if report["absent"]:
        lines.append(f"No peer was measured. {report['absent']}")
    return "\n".join(lines)


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


def _random_inputs(model: nn.Module, batch_size: int, image_size: int) -> tuple[Any, jax.Array]:
    """Variables and images without compiling the model's own initialisation, which takes long."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, model.architecture.in_channels)
    images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    abstract = abstract_variables(model)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape, np.float32) * 0.02
        return jnp.asarray(value + (path[-1].key in ("scale", "var")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract), images


def _program(mode: str, model: nn.Module, variables: Any, images: jax.Array) -> Program:
    """The compiled mode. A training step's result is the state of the next."""
    if mode == "inference":
        return _compiled(model.apply, (variables,), images)
    if mode == "inference-merged":
        merged = jax.jit(reparameterize)(variables)
        return _compiled(model.clone(deploy=True).apply, (merged,), images)
    if mode == "gradients":
        return _compiled(_differentiated(model), (variables,), images)

    optimizer = optax.adamw(1e-3)
    has_drop_path = hasattr(model, "drop_path_rate")
    differentiated = _differentiated(model.clone(drop_path_rate=0.1) if has_drop_path else model)

    def train_step(variables, opt_state, images):
        grads, updates = differentiated(variables, images)
        steps, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], steps)
        return {"params": params, **updates}, opt_state

    own = jax.tree.map(jnp.copy, variables)  # the first step gives its memory away
    return _compiled(train_step, (own, optimizer.init(own["params"])), images, carries=True)


def _differentiated(model: nn.Module) -> Callable[..., Any]:
    """(variables, images) to the gradients of a cross entropy and the new statistics."""

    def run(variables, images):
        def loss_of(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            labels = jnp.zeros(images.shape[0], jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        return jax.grad(loss_of, has_aux=True)(variables["params"])

    return run


def _compiled(
    function: Callable[..., Any], state: tuple[Any, ...], images: jax.Array, carries: bool = False
) -> Program:
    """`function(*state, images)`; with `carries`, what it returns is the next state."""
    donated = tuple(range(len(state))) if carries else ()
    begin = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donated).lower(*state, images).compile()
    seconds = time.perf_counter() - begin

    def start():
        nonlocal state
        result = compiled(*state, images)
        state = result if carries else state
        return result

    return Program(start, compile_seconds=seconds, memory_bytes=planned_memory(compiled))
