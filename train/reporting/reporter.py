"""Reports of a run: progress, files of metrics, pictures, and a plot of the curves."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train.errors import RunError
from train.reporting.console import FORMATS, duration, format_metric, say, warn
from train.reporting.curve import draw
from train.reporting.metric_writers import JsonLines, MetricWriter, TensorBoard, WeightsAndBiases
from train.reporting.pictures import FOLDER, write_pictures

_REPORTS = 20  # number of last reports from which the remaining time is estimated


class Reporter:
    """Writes the metrics of a run to its folder and shows its progress; a context manager.

    Without a terminal, each report is printed as a line. If a report cannot be written, on a full
    disk for example, there is a warning and the run continues.

    Args:
      workdir: folder of the run.
      first_step: number of steps done already.
      total_steps: of the run.
      wandb: a project of Weights & Biases to report to, or None; see `WeightsAndBiases`.
      active: False makes a reporter that does nothing, for all processes except the main one.

    Raises:
      RunError: Weights & Biases is not installed or cannot be reached.
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
        self.pictures_path = workdir / FOLDER
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

    def scalars(
        self, step: int, values: dict[str, float], notes: Mapping[str, str] | None = None
    ) -> None:
        """Reports metrics at a step: on the progress bar or as a line, and in the files.

        Args:
          step: number of steps done.
          values: metrics of training, among them "train/loss", or scores of evaluations,
            "eval/...". Accuracies and other ratios are between 0 and 1.
          notes: words to print beside the scores of an evaluation, by its name.
        """
        if not self._active:
            return
        for writer in self._writers:
            with self._warning():
                writer.write(step, values)
        metrics = list(_format_metrics(values, notes or {}))
        if "train/loss" in values:
            left = self._time_left(step)
            self._bar.set_postfix_str(", ".join([*left, *metrics]))
            metrics += left
            # On a terminal, the progress bar shows the metrics.
            if not self._bar.disable and sys.stdout.isatty():
                return
        self.say(f"step {step}/{self._bar.total}  {'  '.join(metrics)}")

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures at a step to the workdir, see `write_pictures`, and for TensorBoard.

        Args:
          step: number of steps done.
          pictures: uint8 (H, W, 3), by name.
        """
        if not self._active or not pictures:
            return
        with self._warning():
            write_pictures(self._workdir, pictures)
        for writer in self._writers:
            with self._warning():
                writer.write_pictures(step, pictures)

    def advance(self) -> None:
        """Moves the progress bar by a step."""
        if self._active:
            self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line as `console.say` does, if this reporter is active."""
        if self._active:
            say(text)

    def draw_curve(self) -> None:
        """Draws the metrics in metrics.jsonl to curve.png."""
        if self._active:
            with self._warning():
                draw([self._workdir], self.curve_path)

    def _time_left(self, step: int) -> list[str]:
        """The remaining time, from the rate of the last steps, evaluations and saves included."""
        self._reports.append((step, time.perf_counter()))
        (first, start), (last, end) = self._reports[0], self._reports[-1]
        if not first < last < self._bar.total:
            return []
        return [f"{duration((end - start) / (last - first) * (self._bar.total - last))} left"]

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RunError) as error:
            warn(f"A report could not be written to {self._workdir}: {error}")


# Metrics of training that are in the files but not in messages.
_ONLY_IN_FILES = {"train/grad_norm", "train/param_norm"}


def _format_metrics(values: dict[str, float], notes: Mapping[str, str]) -> Iterator[str]:
    """The metrics of a message; those of an evaluation are between its name and its note.

    For training these are the loss, its terms and the metrics in `FORMATS`; for an evaluation, all
    scores except the number of examples.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, _, short = name.rpartition("/")
        if short in FORMATS or (group and name not in _ONLY_IN_FILES and short != "examples"):
            groups.setdefault("" if group == "train" else group, {})[short] = value
    for group, members in groups.items():
        if group:
            yield group
        order = [short for short in FORMATS if short in members]
        for short in dict.fromkeys((*order, *members)):
            yield format_metric(short, members[short])
        if group in notes:
            yield f"({notes[group]})"
