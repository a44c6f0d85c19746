"""The metrics of single steps, gathered until somebody asks."""

import math
import time

import jax

_AVERAGED = ("loss", "grad_norm")


class NotFiniteError(Exception):
    """A metric was NaN or infinite: `step`, `name` and `value` say which."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} became {value} at step {step}")
        self.step, self.name, self.value = step, name, value


class MetricWindow:
    """Metrics of the steps since the last report, fetched from the devices at once.

    Args:
      batch_size: images in a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._steps: dict[int, dict[str, jax.Array]] = {}
        self._timed_steps = 0
        self._clock: float | None = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, without waiting for them."""
        self._steps[step] = metrics
        if self._clock is None:  # the first step compiles and is not timed
            jax.block_until_ready(metrics)
            self.restart_clock()
        else:
            self._timed_steps += 1

    def close(self) -> dict[str, float]:
        """Averages, and `images_per_second`, over the window; the next one begins.

        Raises:
          NotFiniteError: for the first metric that was not finite.
        """
        window = jax.tree.map(float, jax.device_get(self._steps))
        seconds = time.perf_counter() - self._clock
        for step, metrics in window.items():
            for name, value in metrics.items():
                require_finite(step, name, value)
        averages = {
            f"train/{name}": sum(metrics[name] for metrics in window.values()) / len(window)
            for name in _AVERAGED
        }
        if self._timed_steps:
            averages["images_per_second"] = self._timed_steps * self._batch_size / seconds
        self._steps = {}
        self.restart_clock()
        return averages

    def restart_clock(self) -> None:
        """Leaves out the time since the window began: evaluating and saving are no training."""
        self._clock, self._timed_steps = time.perf_counter(), 0


def require_finite(step: int, name: str, value: float) -> None:
    """Raises NotFiniteError if `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFiniteError(step, name, value)
