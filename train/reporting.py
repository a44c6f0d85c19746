"""What a run tells: a progress bar or plain lines, metrics.jsonl, TensorBoard and a curve."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter
from tqdm import tqdm

from replk_jax.files import replace_text

# What the bar shows, and under which name.
_ON_BAR = {"train/loss": "loss", "images_per_second": "images/s"}


class Reporter:
    """Writes the metrics of a run into its folder and shows its progress; a context manager.

    `metrics.jsonl` has a line per report, {"step": ..., name: value, ...}. What an earlier,
    killed run reported beyond `first_step` is taken out first, so every step stands once.

    Args:
      workdir: the run's folder.
      first_step: steps that are done already.
      total_steps: of the run.
      active: False makes a reporter that does nothing, for all processes but one.
    """

    def __init__(self, workdir: Path, first_step: int, total_steps: int, active: bool = True):
        self._active = active
        self.metrics_path = workdir / "metrics.jsonl"
        self.curve_path = workdir / "curve.png"
        self.tensorboard_path = workdir / "tensorboard"
        if not active:
            return
        _drop_lines_after(self.metrics_path, first_step)
        self._jsonl = self.metrics_path.open("a")
        self._tensorboard = SummaryWriter(str(self.tensorboard_path), purge_step=first_step + 1)
        # disable=None: no bar where standard error is not a terminal.
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._bar.close()
            self._tensorboard.close()
            self._jsonl.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Reports values at a step: on the bar or as a line, and in both files."""
        if not self._active:
            return
        self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        on_bar = {short: values[name] for name, short in _ON_BAR.items() if name in values}
        self._bar.set_postfix({short: f"{value:.4g}" for short, value in on_bar.items()})
        # Where both streams are a terminal, only what the bar does not say goes above it.
        if self._bar.disable or not sys.stdout.isatty() or not on_bar:
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"step {step}/{self._bar.total}  {text}")

    def advance(self) -> None:
        """One step is done."""
        if self._active:
            self._bar.update()

    def say(self, text: str) -> None:
        """A line for the user."""
        if self._active:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def draw_curve(self) -> None:
        """Draws loss and accuracy over the steps, from metrics.jsonl into curve.png."""
        if not self._active:
            return
        lines = [json.loads(line) for line in self.metrics_path.read_text().splitlines()]
        figure = Figure(figsize=(8, 4), layout="constrained")
        loss_axis, accuracy_axis = figure.subplots(1, 2)
        for axis, names in (
            (loss_axis, ("train/loss", "eval/loss")),
            (accuracy_axis, ("eval/top1",)),
        ):
            for name in names:
                points = [(line["step"], line[name]) for line in lines if name in line]
                axis.plot(*zip(*points, strict=True) if points else ((), ()), label=name)
            axis.set_xlabel("step")
            axis.legend()
            axis.grid(alpha=0.3)
        figure.savefig(self.curve_path, dpi=120)


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # a line that the kill cut short
    replace_text(path, "".join(f"{line}\n" for line in kept))
