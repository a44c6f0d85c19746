"""The curves of runs: loss, scores, learning rate, norms, speed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from replk_jax.io.files import replacing
from replk_jax.io.text import escaped
from train.errors import RunError
from train.reporting.console import score_title
from train.reporting.metric_writers import read_metrics

# Title of each panel, and its lines: a metric and what it is called there. Between the loss and
# the others is a panel for each score of an evaluation.
Panels = dict[str, dict[str, str]]
_LOSS = {
    "train/loss": "training",
    "eval/loss": "evaluation",
    "eval_ema/loss": "moving average",
}
_NO_SCORES = {"loss", "examples"}
_COURSE: Panels = {
    "learning rate": {"learning_rate": "learning rate"},
    "norms": {"train/grad_norm": "gradient", "train/param_norm": "parameters"},
    "images a second": {"images_per_second": "images a second"},
    "data wait, utilisation": {
        "data_wait": "time waiting for data",
        "mfu": "model FLOP utilisation",
    },
}
_LOGARITHMIC = {"norms"}
_STYLES = ("-", "--", ":")
_COLUMNS = 4

Line = dict[str, float]


def draw(workdirs: Sequence[Path], output: Path) -> None:
    """Draws what `metrics.jsonl` in the folders of runs holds.

    Args:
      workdirs: the folders; of several, each has a colour.
      output: the picture; its suffix says of what kind.

    Raises:
      RunError: a folder that is not there, or has no metrics.
      OSError: the picture cannot be written.
    """
    picture = figure({name: read_run(workdir) for name, workdir in _names(workdirs).items()})
    with replacing(output) as file:
        picture.savefig(file, format=output.suffix.lstrip("."), dpi=120)


def figure(runs: Mapping[str, Sequence[Line]]) -> Figure:
    """The panels of which some run has metrics, with the lines of all runs.

    Args:
      runs: by name, from `read_metrics`.
    """
    panels = _panels(line for lines in runs.values() for line in lines)
    columns, rows = min(len(panels), _COLUMNS), math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    for place, (title, names) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(rows, columns, place)
        _draw_panel(axis, runs.values(), names)
        axis.set_title(title)
        axis.set_yscale("log" if title in _LOGARITHMIC else "linear")
    if len(runs) > 1:
        colours = [Line2D([], [], color=_colour(number)) for number in range(len(runs))]
        legend = figure.legend(colours, runs, loc="outside lower center", ncols=columns)
        _take_literally(legend)
    return figure


def _names(workdirs: Sequence[Path]) -> dict[str, Path]:
    """What the legend calls the folders: their names, or their paths if two have one name."""
    names = {escaped(workdir.resolve().name): workdir for workdir in workdirs}
    if len(names) == len(workdirs):
        return names
    return {escaped(str(workdir)): workdir for workdir in workdirs}


def read_run(workdir: Path) -> Sequence[Line]:
    """The reports of a run, from `metrics.jsonl` in its folder.

    Raises:
      RunError: the folder is not there, or has no metrics.
    """
    path = workdir / "metrics.jsonl"
    if not workdir.is_dir():
        raise RunError(f"There is no folder {workdir}.")
    lines = read_metrics(path) if path.is_file() else []
    if not _panels(lines):
        raise RunError(f"{workdir} has no metrics yet, in {path.name}: is it the folder of a run?")
    return lines


def _panels(lines: Iterable[Line]) -> Panels:
    """Those of which something is reported; of the scores in the order in which they first are."""
    reported = dict.fromkeys(name for line in lines for name in line)
    evaluations = (name.partition("/") for name in reported)
    scores = dict.fromkeys(
        score
        for kind, _, score in evaluations
        if kind in ("eval", "eval_ema") and score not in _NO_SCORES
    )
    of_scores = {
        score_title(score): {
            f"eval/{score}": "evaluation",
            f"eval_ema/{score}": "moving average",
        }
        for score in scores
    }
    panels = {"loss": _LOSS, **of_scores, **_COURSE}
    return {name: lines for name, lines in panels.items() if reported.keys() & lines.keys()}


def _draw_panel(axis: Axes, runs: Iterable[Sequence[Line]], names: dict[str, str]) -> None:
    for number, lines in enumerate(runs):
        for name, style in zip(names, _STYLES, strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                (curve,) = axis.plot(
                    *zip(*points, strict=True), style, color=_colour(number), label=name
                )
                curve.set_marker("." if len(points) == 1 else "")  # it makes no line
    there = {line.get_label(): line.get_linestyle() for line in axis.get_lines()}
    if there and len(names) > 1:
        axis.legend(
            [Line2D([], [], color="black", linestyle=style) for style in there.values()],
            [names[name] for name in there],
        )
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def _take_literally(legend: Legend) -> None:
    """A dollar in the name of a folder begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colour(number: int) -> str:
    return f"C{number}"
