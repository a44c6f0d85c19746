"""A profiler trace of a few training steps."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from train.reporting.console import say, warn

# The traced steps after the start of a run, once its buffers are full.
_FIRST, _COUNT = 10, 5


class Profiler:
    """Traces some steps of a run with `jax.profiler`; a context manager around its loop.

    These are steps 10 to 14 after the start; in a shorter run, the last five, but never the first
    step, which may compile.

    Args:
      folder: of the trace.
      first_step: number of steps done already.
      total_steps: of the run.
      active: False makes a profiler that does nothing.
    """

    def __init__(self, folder: Path, first_step: int, total_steps: int, *, active: bool):
        self._folder = folder
        steps = range(first_step + 1, total_steps + 1)
        start = max(1, min(_FIRST - 1, len(steps) - _COUNT))
        self._steps = steps[start : start + _COUNT] if active else range(0)
        self._annotation = contextlib.ExitStack()
        self._tracing = False
        if active and not self._steps:
            warn("No trace is made: this run has fewer than two steps left.")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracing:
            # An exception that ends the run must not be replaced by one about the trace.
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self._stop()

    def step(self, step: int, metrics: Any) -> None:
        """Starts or stops the trace, if it is due.

        Args:
          step: the last step that was dispatched.
          metrics: of that step. Before the trace starts and before it stops, they are waited for.
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
        options.python_tracer_level = 0  # do not trace every Python call
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._tracing = True

    def _stop(self) -> None:
        self._annotation.close()
        self._tracing = False
        jax.profiler.stop_trace()
        say(
            f"A trace of steps {self._steps.start} to {self._steps[-1]} is in {self._folder}. To "
            f"view it: pip install xprof; xprof --logdir={self._folder} --port=8791. Or open its "
            "perfetto_trace.json.gz at https://ui.perfetto.dev."
        )
