"""Learning rate schedules: a warm-up, and the decay of the rate over the run."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

SCHEDULES = ("cosine", "polynomial", "step", "constant")
WARMUPS = ("linear", "constant")

Warmup = Literal["linear", "constant"]
# The learning rate, float32 (), by the number of steps done; an `optax.Schedule`.
Schedule = Callable[[ArrayLike], jax.Array]


def make_schedule(
    name: Literal["cosine", "polynomial", "step", "constant"],
    *,
    peak_lr: float,
    total_steps: int,
    final_lr: float = 0.0,
    power: float = 1.0,
    milestones: tuple[int, ...] = (),
    milestone_factor: float = 0.1,
    warmup: Warmup = "linear",
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> Schedule:
    """A schedule by name.

    "cosine" starts after its warm-up (see `warmup_cosine`). The others decay from the first step
    on, and the warm-up multiplies them (see `warmed_up`).

    Args:
      name: one of `SCHEDULES`.
      peak_lr: the learning rate without warm-up and decay.
      total_steps: of the run.
      final_lr: of "cosine" and "polynomial", at the end of the run.
      power: of "polynomial".
      milestones: of "step": the steps after which the rate is multiplied by `milestone_factor`.
      milestone_factor: of "step".
      warmup: one of `WARMUPS`.
      warmup_steps: length of the warm-up; 0 for none.
      warmup_from: the factor on the learning rate at the start of a linear warm-up, or throughout
        a constant one.

    Raises:
      ValueError: an unknown name.
    """
    match name:
        case "cosine":
            return warmup_cosine(peak_lr, final_lr, warmup_steps, total_steps, warmup, warmup_from)
        case "polynomial":
            decay = polynomial(peak_lr, final_lr, total_steps, power)
        case "step":
            decay = multi_step(peak_lr, milestones, milestone_factor)
        case "constant":
            decay = constant(peak_lr)
        case _:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}.")
    return warmed_up(decay, warmup_steps, warmup, warmup_from)


def warmup_cosine(
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    warmup: Warmup = "linear",
    warmup_from: float = 0.0,
) -> Schedule:
    """A warm-up followed by a cosine decay, as in RepLKNet's training script.

    A linear warm-up includes both of its ends, so the peak is used twice. The cosine would reach
    `final` one step after the last.

    Args:
      peak, final: learning rates.
      warmup_steps, total_steps: lengths of the warm-up and of the run, warm-up included.
      warmup, warmup_from: see `make_schedule`.
    """

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rising = _warmup(peak * warmup_from, peak, step, max(warmup_steps - 1, 1), warmup)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = final + 0.5 * (peak - final) * (1 + jnp.cos(math.pi * jnp.minimum(progress, 1)))
        return jnp.where(step < warmup_steps, rising, cosine)

    return schedule


def constant(peak: float) -> Schedule:
    """The same learning rate at all steps."""
    return lambda step: jnp.full(jnp.shape(step), peak, jnp.float32)


def polynomial(peak: float, final: float, total_steps: int, power: float) -> Schedule:
    """mmsegmentation's "poly": final + (peak - final) (1 - step / total_steps) ** power."""

    def schedule(step: ArrayLike) -> jax.Array:
        # The difference of integers is exact; 1 - step / total_steps would cancel near the end.
        left = jnp.maximum(total_steps - jnp.asarray(step), 0) / total_steps
        return final + (peak - final) * left**power

    return schedule


def multi_step(peak: float, milestones: tuple[int, ...], factor: float) -> Schedule:
    """mmdetection's "step": peak * factor ** (number of milestones reached)."""

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        reached = sum((step >= milestone for milestone in milestones), jnp.int32(0))
        return peak * jnp.float32(factor) ** reached

    return schedule


def warmed_up(
    schedule: Schedule, warmup_steps: int, warmup: Warmup, warmup_from: float
) -> Schedule:
    """mmcv's warm-up: a factor on the first steps of a schedule, 1 from `warmup_steps` on.

    Args:
      schedule: the learning rate without warm-up.
      warmup_steps, warmup, warmup_from: see `make_schedule`.
    """

    def warmed(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        factor = _warmup(warmup_from, 1.0, step, max(warmup_steps, 1), warmup)
        return schedule(step) * jnp.where(step < warmup_steps, factor, 1.0)

    return warmed


def _warmup(
    start: float, end: float, step: jax.Array, steps: int, kind: Warmup
) -> jax.Array | float:
    return start if kind == "constant" else start + (end - start) * step / steps
