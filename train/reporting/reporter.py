"""What a run tells: a progress bar or plain lines, its metrics in files, and a curve."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from train.errors import RunError
from train.reporting.console import WORDS, duration, in_words, say, warn
from train.reporting.curve import draw
from train.reporting.metric_writers import JsonLines, MetricWriter, TensorBoard, WeightsAndBiases

# From so many of the last reports the time that is left is estimated.
_REPORTS = 20


class Reporter:
    """Writes the metrics of a run into its folder and shows its progress; a context manager.

    Without a terminal there is a line for each report. A report that cannot be written, because
    the disk is full, is warned of and ends no run.

    Args:
      workdir: the run's folder.
      first_step: steps that are done already.
      total_steps: of the run.
      wandb: a project of Weights & Biases that is told as well; see `WeightsAndBiases`.
      active: False makes a reporter that does nothing, for all processes but one.

    Raises:
      RunError: the project cannot be told.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        total_steps: int,
        *,
        wandb: str | None = None,
        active: bool = True,
    ):
        self._active = active
        self._workdir = workdir
        self.metrics_path = workdir / "metrics.jsonl"
        self.curve_path = workdir / "curve.png"
        self.tensorboard_path = workdir / "tensorboard"
        if not active:
            return
        self._writers: list[MetricWriter] = [WeightsAndBiases(wandb, workdir)] if wandb else []
        self._writers += [
            JsonLines(self.metrics_path, first_step),
            TensorBoard(self.tensorboard_path, first_step),
        ]
        self._reports: deque[tuple[int, float]] = deque(maxlen=_REPORTS)
        # disable=None: no bar where standard error is not a terminal.
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=None,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._active:
            return
        self._bar.close()
        for writer in self._writers:
            with self._warning():
                writer.close(failed=kind is not None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Reports values at a step: on the bar or as a line, and wherever metrics are kept.

        Args:
          step: number of steps done.
          values: of training, with "train/loss", or of an evaluation, "eval/..."; shares of 1.
        """
        if not self._active:
            return
        for writer in self._writers:
            with self._warning():
                writer.write(step, values)
        words = list(_in_words(values))
        if "train/loss" in values:
            left = self._time_left(step)
            self._bar.set_postfix_str(", ".join([*left, *words]))
            words += left
            # Where both streams are a terminal, the bar has said it.
            if not self._bar.disable and sys.stdout.isatty():
                return
        self.say(f"step {step}/{self._bar.total}  {'  '.join(words)}")

    def advance(self) -> None:
        """One step is done."""
        if self._active:
            self._bar.update()

    def say(self, text: str) -> None:
        """As the function `say`, if this reporter is active."""
        if self._active:
            say(text)

    def draw_curve(self) -> None:
        """Draws what metrics.jsonl has into curve.png."""
        if self._active:
            with self._warning():
                draw([self._workdir], self.curve_path)

    def _time_left(self, step: int) -> list[str]:
        """From the steps between the last reports, evaluations and saves included."""
        self._reports.append((step, time.perf_counter()))
        (first, begin), (last, end) = self._reports[0], self._reports[-1]
        if not first < last < self._bar.total:
            return []
        return [f"{duration((end - begin) / (last - first) * (self._bar.total - last))} left"]

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RunError) as error:
            warn(f"A report could not be written to {self._workdir}: {error}")


# Metrics of training that only the files have.
_IN_FILES_ALONE = {"train/grad_norm", "train/param_norm"}


def _in_words(values: dict[str, float]) -> Iterator[str]:
    """What a line says of metrics; those of an evaluation follow its name.

    Of training, the loss, its terms and what `WORDS` has; of an evaluation, all but the number of
    examples.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, _, short = name.rpartition("/")
        if short in WORDS or (group and name not in _IN_FILES_ALONE and short != "examples"):
            groups.setdefault("" if group == "train" else group, {})[short] = value
    for group, members in groups.items():
        if group:
            yield group
        order = [short for short in WORDS if short in members]
        for short in dict.fromkeys((*order, *members)):
            yield in_words(short, members[short])
