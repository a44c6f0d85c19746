"""A trace of a few steps: what the devices and the host do in them, and what they wait for."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from train.reporting.console import say, warn

# The traced steps of a run: when it begins, it is still filling buffers.
_FIRST, _COUNT = 10, 5


class Profiler:
    """Traces some steps of a run with `jax.profiler`; a context manager around its loop.

    Steps 10 to 14 after the start; of a shorter run the last five, but not the first step, which
    may compile.

    Args:
      folder: for the trace.
      first_step: steps that are done already.
      total_steps: of the run.
      active: False makes a profiler that does nothing.
    """

    def __init__(self, folder: Path, first_step: int, total_steps: int, *, active: bool):
        self._folder = folder
        steps = range(first_step + 1, total_steps + 1)
        begin = max(1, min(_FIRST - 1, len(steps) - _COUNT))
        self._steps = steps[begin : begin + _COUNT] if active else range(0)
        self._annotation = contextlib.ExitStack()
        self._tracing = False
        if active and not self._steps:
            warn("There is no trace of this run, which has less than two steps left.")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracing:
            # What stopped the run is what its user must hear.
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self._stop()

    def step(self, step: int, metrics: Any) -> None:
        """Begins or ends the trace if it is time.

        Args:
          step: that was started just now.
          metrics: what it returns; waited for before the first traced step and after the last.
        """
        self._annotation.close()
        if step + 1 in self._steps:
            if not self._tracing:
                jax.block_until_ready(metrics)
                self._start()
            annotation = jax.profiler.StepTraceAnnotation("train", step_num=step + 1)
            self._annotation.enter_context(annotation)
        elif self._tracing:
            jax.block_until_ready(metrics)
            self._stop()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call in every thread would drown the rest
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._tracing = True

    def _stop(self) -> None:
        self._annotation.close()
        self._tracing = False
        jax.profiler.stop_trace()
        say(
            f"A trace of steps {self._steps.start} to {self._steps[-1]} is in {self._folder}. To "
            f"look at it: pip install xprof; xprof --logdir={self._folder} --port=8791. Or open "
            "the perfetto_trace.json.gz in it at https://ui.perfetto.dev."
        )
