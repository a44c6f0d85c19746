"""The metrics of single steps, gathered until somebody asks."""

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax


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
        # Another thread finds out when a step ends, so that the loop can run ahead of the devices.
        self._watcher = ThreadPoolExecutor(max_workers=1)
        self._step_end: Future[float] = self._watcher.submit(time.perf_counter)
        self._waits: list[tuple[float, float, Future[float]]] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Goes around the wait for the next batch, of which `data_wait` and a trace tell."""
        begin = time.perf_counter()
        with jax.profiler.TraceAnnotation("wait for data"):
            yield
        self._waits.append((begin, time.perf_counter(), self._step_end))

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, scalars by name, without waiting for them."""
        self._steps[step] = metrics
        self._step_end = self._watcher.submit(_when_there, metrics)
        if self._clock is None:  # the first step finds nothing ready and is not timed
            jax.block_until_ready(metrics)
            self.restart_clock()
        else:
            self._timed_steps += 1

    def close(self) -> dict[str, float]:
        """Means over the window as `train/NAME`, its speed and its waits; the next one begins.

        If any step was timed, `images_per_second`; and `data_wait`, the share of the time that the
        devices had nothing to do because the next batch was not there. While they are still at
        work on an earlier step, a wait of the loop does no harm and does not count.

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
            for name in next(iter(window.values()))
        }
        if self._timed_steps:
            averages["images_per_second"] = self._timed_steps * self._batch_size / seconds
            averages["data_wait"] = self._idle_seconds() / seconds
        self._steps = {}
        self.restart_clock()
        return averages

    def restart_clock(self) -> None:
        """Leaves out the time since the window began: evaluating and saving are no training."""
        self._clock, self._timed_steps, self._waits = time.perf_counter(), 0, []

    def _idle_seconds(self) -> float:
        return sum(
            max(0.0, end - max(begin, step_end.result())) for begin, end, step_end in self._waits
        )


def require_finite(step: int, name: str, value: float) -> None:
    """Raises NotFiniteError if `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFiniteError(step, name, value)


def _when_there(metrics: dict[str, jax.Array]) -> float:
    jax.block_until_ready(metrics)
    return time.perf_counter()
