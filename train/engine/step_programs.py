"""The compiled training step, for each shape of batches."""

from collections.abc import Callable

import jax

from replk_jax.models.summary import planned_memory
from train.engine.step import StepMetrics, TrainState, TrainStep
from train.engine.task import Batch

StepProgram = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


class StepPrograms:
    """Compiles the step once for each shape of batches, and says how much memory it takes.

    Args:
      step: from `make_train_step`.
      say: is called with a message for each program.
    """

    def __init__(self, step: TrainStep, say: Callable[[str], None]):
        self._step, self._say = step, say
        self._programs: dict[tuple[tuple[str, tuple[int, ...]], ...], StepProgram] = {}

    def __len__(self) -> int:
        """The number of programs so far."""
        return len(self._programs)

    def __call__(self, state: TrainState, batch: Batch) -> StepProgram:
        """The program for a state and a batch of these shapes.

        Args:
          state: of the run; its shapes are always the same.
          batch: from `parallel.global_batches`.
        """
        shapes = tuple((name, rows.shape) for name, rows in sorted(batch.items()))
        if shapes not in self._programs:
            compiled = self._step.lower(state, batch).compile()
            self._programs[shapes] = compiled
            self._say(_memory(compiled, batch))
        return self._programs[shapes]


def _memory(compiled: jax.stages.Compiled, batch: Batch) -> str:
    memory = planned_memory(compiled) / 2**30
    size = ""
    if (images := batch.get("image")) is not None:
        size = f" with images of {images.shape[2]} x {images.shape[1]}"
    return f"A step{size} takes up to {memory:.2f} GiB of memory on each device."
