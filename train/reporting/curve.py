"""Plots of the metrics of runs: loss, scores, learning rate, norms, speed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from replk_jax.io.files import replacing
from replk_jax.io.text import escaped
from train.errors import RunError
from train.reporting.console import score_title
from train.reporting.metric_writers import read_metrics

# Panels by title; the lines of each: the names of their metrics, and their labels.
Panels = dict[str, dict[str, str]]
_NO_SCORES = {"loss", "examples"}
_NO_TERMS = {"loss", "grad_norm", "param_norm"}
# The panels after those of the losses and scores.
_OTHER_PANELS: Panels = {
    "learning rate": {"learning_rate": "learning rate"},
    "norms": {"train/grad_norm": "gradient", "train/param_norm": "parameters"},
    "images a second": {"images_per_second": "images a second"},
    "data wait, utilisation": {
        "data_wait": "time waiting for data",
        "mfu": "model FLOP utilisation",
    },
}
_LOGARITHMIC = {"norms"}
_STYLES: tuple[LineStyleType, ...] = (
    "-",
    "--",
    ":",
    "-.",
    (0, (8, 2)),
    (0, (1, 4)),
    (0, (6, 2, 1, 2, 1, 2)),
)
_COLUMNS = 4

Line = dict[str, float]


def draw(workdirs: Sequence[Path], output: Path) -> None:
    """Plots the `metrics.jsonl` of one or more runs.

    Args:
      workdirs: the folders of the runs; each run has a colour.
      output: the picture to write; its suffix gives the format.

    Raises:
      RunError: a folder does not exist, or has no metrics.
      OSError: the picture cannot be written.
    """
    picture = figure({name: read_run(workdir) for name, workdir in _names(workdirs).items()})
    with replacing(output) as file:
        picture.savefig(file, format=output.suffix.lstrip("."), dpi=120)


def figure(runs: Mapping[str, Sequence[Line]]) -> Figure:
    """A figure with the panels for which a run has metrics.

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
        _turn_off_math(legend)
    return figure


def _names(workdirs: Sequence[Path]) -> dict[str, Path]:
    """The folders by label: their names, or their paths if two have the same name."""
    names = {escaped(workdir.resolve().name): workdir for workdir in workdirs}
    if len(names) == len(workdirs):
        return names
    return {escaped(str(workdir)): workdir for workdir in workdirs}


def read_run(workdir: Path) -> Sequence[Line]:
    """The reports of a run, from `metrics.jsonl` in its folder.

    Raises:
      RunError: the folder does not exist, or has no metrics.
    """
    path = workdir / "metrics.jsonl"
    if not workdir.is_dir():
        raise RunError(f"There is no folder {workdir}.")
    lines = read_metrics(path) if path.is_file() else []
    if not _panels(lines):
        raise RunError(f"{workdir} has no metrics yet, in {path.name}: is it the folder of a run?")
    return lines


def _panels(lines: Iterable[Line]) -> Panels:
    """The panels that have metrics; scores are in the order of their first report."""
    reported = dict.fromkeys(name for line in lines for name in line)
    evaluations = dict.fromkeys(
        group for group, _, _ in map(_partition, reported) if group not in ("", "train")
    )
    scores = dict.fromkeys(
        short
        for group, _, short in map(_partition, reported)
        if group in evaluations and short not in _NO_SCORES
    )

    def score_lines(score: str) -> dict[str, str]:
        return {f"{name}/{score}": _evaluation_title(name) for name in evaluations}

    terms = {
        name: short
        for name in reported
        for group, _, short in [_partition(name)]
        if group == "train" and short not in _NO_TERMS
    }
    panels: Panels = {
        "loss": {"train/loss": "training", **score_lines("loss")},
        "loss terms": terms,
        **{score_title(score): score_lines(score) for score in scores},
        **_OTHER_PANELS,
    }
    return {title: names for title, names in panels.items() if reported.keys() & names.keys()}


def _partition(name: str) -> tuple[str, str, str]:
    return name.rpartition("/")


def _evaluation_title(name: str) -> str:
    """The label of an evaluation: "evaluation", "EMA", "SPLIT" or "SPLIT, EMA"."""
    network = name.removesuffix("_ema")
    if network == "eval":
        return "evaluation" if network == name else "EMA"
    split = network.removeprefix("eval_")
    return split if network == name else f"{split}, EMA"


def _draw_panel(axis: Axes, runs: Iterable[Sequence[Line]], names: dict[str, str]) -> None:
    styles: dict[str, LineStyleType] = {
        name: _STYLES[i % len(_STYLES)] for i, name in enumerate(names)
    }
    drawn = dict.fromkeys(names, False)
    for number, lines in enumerate(runs):
        for name, style in styles.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                steps, values = zip(*points, strict=True)
                (curve,) = axis.plot(
                    steps, values, linestyle=style, color=_colour(number), label=name
                )
                curve.set_marker("." if len(points) == 1 else "")  # one point makes no line
                drawn[name] = True
    if any(drawn.values()) and len(names) > 1:
        shown = [name for name in names if drawn[name]]
        axis.legend(
            [Line2D([], [], color="black", linestyle=styles[name]) for name in shown],
            [names[name] for name in shown],
        )
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def _turn_off_math(legend: Legend) -> None:
    """Prevents that a dollar sign in the name of a folder starts a formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colour(number: int) -> str:
    return f"C{number}"
