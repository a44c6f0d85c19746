"""Metrics of single steps, averaged over the steps between two reports."""

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax


class NotFiniteError(Exception):
    """A metric is NaN or infinite.

    Attributes:
      step, name, value: of the metric.
    """

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} became {value} at step {step}")
        self.step, self.name, self.value = step, name, value


class MetricWindow:
    """Metrics of the steps since the last report; they stay on the devices until `close`.

    Args:
      batch_size: images in a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._steps: dict[int, dict[str, jax.Array]] = {}
        self._started = False
        self._timed_steps = 0
        self._clock = time.perf_counter()
        # A thread records when steps end, so that the loop can run ahead of the devices.
        self._watcher = ThreadPoolExecutor(max_workers=1)
        self._step_end: Future[float] = self._watcher.submit(time.perf_counter)
        self._waits: list[tuple[float, float, Future[float]]] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context manager around the wait for the next batch; measures `data_wait`."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation("wait for data"):
            yield
        self._waits.append((start, time.perf_counter(), self._step_end))

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step, scalars by name, without waiting for them."""
        self._steps[step] = metrics
        self._step_end = self._watcher.submit(_time_when_ready, metrics)
        if self._started:
            self._timed_steps += 1
        else:  # the first step of a run is not timed
            jax.block_until_ready(metrics)
            self._started = True
            self.restart_clock()

    def close(self) -> dict[str, float]:
        """Ends the window and starts the next one.

        Returns:
          Means over the steps, as `train/NAME`. If steps were timed, also `images_per_second` and
          `data_wait`: the fraction of the time in which the devices were idle because the next
          batch was not ready. A wait while they still run an earlier step does not count.

        Raises:
          NotFiniteError: for the first step with a metric that is NaN or infinite, of which a
            term of the loss is named rather than the loss.
        """
        window = jax.tree.map(float, jax.device_get(self._steps))
        seconds = time.perf_counter() - self._clock
        for step, metrics in window.items():
            # A term of the loss first, as the cause of a loss or norm that is not finite.
            for name in sorted(metrics, key=_is_effect):
                require_finite(step, name, metrics[name])
        averages = {
            f"train/{name}": sum(metrics[name] for metrics in window.values()) / len(window)
            for name in next(iter(window.values()))
        }
        if self._timed_steps:
            averages["images_per_second"] = self._timed_steps * self._batch_size / seconds
            averages["data_wait"] = self._idle_seconds() / seconds
        self._steps = {}
        self.restart_clock()
        return averages

    def restart_clock(self) -> None:
        """Excludes the time since the start of the window, spent on evaluating and saving."""
        self._clock, self._timed_steps, self._waits = time.perf_counter(), 0, []

    def _idle_seconds(self) -> float:
        return sum(
            max(0.0, end - max(start, step_end.result())) for start, end, step_end in self._waits
        )


def _is_effect(name: str) -> bool:
    """Whether a metric is not finite as soon as a term of the loss is not."""
    return name in ("loss", "grad_norm", "param_norm")


def require_finite(step: int, name: str, value: float) -> None:
    """Raises NotFiniteError if `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFiniteError(step, name, value)


def _time_when_ready(metrics: dict[str, jax.Array]) -> float:
    jax.block_until_ready(metrics)
    return time.perf_counter()
