"""How fast a model runs here: images per second and compile time."""

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.models import create_model
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import reparameterize

MODES = ("inference", "inference-merged", "training")


@dataclasses.dataclass(frozen=True)
class Timing:
    """One measured program.

    Attributes:
      mode: one of `MODES`.
      compile_seconds: from tracing to the executable.
      step_seconds: median over `runs`, each waited for, after a run that is not counted.
      images_per_second: batch size over `step_seconds`.
      runs: how many were timed.
    """

    mode: str
    compile_seconds: float
    step_seconds: float
    images_per_second: float
    runs: int


def benchmark_model(
    name: str,
    *,
    image_size: int = 224,
    batch_size: int = 1,
    dtype: str = "float32",
    modes: tuple[str, ...] = MODES,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Times a model on the default device, on one batch that stays there.

    The weights are random, which speed does not depend on. A training step is forward,
    backward and AdamW, with stochastic depth, and gives its memory to the next. JAX's
    persistent compilation cache must be off for the compile time to mean anything.

    Args:
      name: of the model.
      image_size: height and width.
      batch_size: images at once.
      dtype: of the computation; parameters are float32, as they are in training.
      modes: what to time, out of `MODES`.
      seconds: how long to repeat each; at least three runs.

    Returns:
      A dictionary fit for JSON: the settings, the versions, the device and `timings`.

    Raises:
      ValueError: an unknown model or mode.
    """
    unknown = set(modes) - set(MODES)
    if unknown:
        raise ValueError(f"Unknown mode {', '.join(sorted(unknown))}; known: {', '.join(MODES)}.")
    model = create_model(name, dtype=jnp.dtype(dtype), drop_path_rate=0.1)
    variables, images = _random_inputs(model, batch_size, image_size)
    timings = []
    for mode in modes:
        timings.append(_time(mode, _program(mode, model, variables, images), batch_size, seconds))
    device = jax.devices()[0]
    return {
        "model": name,
        "image_size": image_size,
        "batch_size": batch_size,
        "dtype": dtype,
        "platform": device.platform,
        "device": device.device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "python": platform.python_version(),
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }


def format_report(report: dict[str, Any]) -> str:
    """The report of `benchmark_model` as text."""
    lines = [
        f"{report['model']}, {report['image_size']} x {report['image_size']}, batch "
        f"{report['batch_size']}, {report['dtype']}, on {report['platform']} "
        f"({report['device']}), jax {report['jax']}, Python {report['python']}",
        f"{'':18}{'images/s':>10}{'s/step':>10}{'compile s':>11}{'runs':>6}",
    ]
    rates = {}
    for timing in report["timings"]:
        rates[timing["mode"]] = timing["images_per_second"]
        lines.append(
            f"{timing['mode']:18}{timing['images_per_second']:10.2f}"
            f"{timing['step_seconds']:10.4f}{timing['compile_seconds']:11.1f}{timing['runs']:6}"
        )
    if {"inference", "inference-merged"} <= rates.keys():
        ratio = rates["inference-merged"] / rates["inference"]
        lines.append(f"re-parameterized over training-time inference: {ratio:.2f} times as fast")
    return "\n".join(lines)


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


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is timed: `function(*state, images)`; with `carries` its result is the next state."""

    function: Callable
    state: tuple[Any, ...]
    images: jax.Array
    carries: bool


def _program(mode: str, model: nn.Module, variables: Any, images: jax.Array) -> _Program:
    if mode == "inference":
        return _Program(model.apply, (variables,), images, carries=False)
    if mode == "inference-merged":
        merged = jax.jit(reparameterize)(variables)
        return _Program(model.clone(deploy=True).apply, (merged,), images, carries=False)

    optimizer = optax.adamw(1e-3)
    labels = jnp.zeros(images.shape[0], jnp.int32)

    def train_step(variables, opt_state, images):
        def loss_of(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        grads, updates = jax.grad(loss_of, has_aux=True)(variables["params"])
        steps, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], steps)
        return {"params": params, **updates}, opt_state

    own = jax.tree.map(jnp.copy, variables)  # the first step gives its memory away
    return _Program(train_step, (own, optimizer.init(own["params"])), images, carries=True)


def _time(mode: str, program: _Program, batch_size: int, seconds: float) -> Timing:
    state, images = program.state, program.images
    donated = tuple(range(len(state))) if program.carries else ()
    start = time.perf_counter()
    compiled = jax.jit(program.function, donate_argnums=donated).lower(*state, images).compile()
    compile_seconds = time.perf_counter() - start

    runs: list[float] = []
    while len(runs) < 4 or sum(runs[1:]) < seconds:
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*state, images))
        runs.append(time.perf_counter() - start)
        state = result if program.carries else state
    timed = runs[1:]  # the first warms up
    step_seconds = statistics.median(timed)
    return Timing(mode, compile_seconds, step_seconds, batch_size / step_seconds, len(timed))
