"""The summary at the end of a run: its scores, a table of them, and the paths of its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from replk_jax.io.text import escaped
from train.reporting.console import format_metric, table_text
from train.reporting.reporter import Reporter


class SavedSteps(Protocol):
    """The checkpoints of a run."""

    def latest(self) -> int | None: ...

    def best(self) -> int | None: ...

    def path(self, step: int) -> Path: ...


def closing_summary(result: Mapping[str, Any], checkpoints: SavedSteps, reporter: Reporter) -> str:
    """A table of the scores of a run and the paths of its files.

    Args:
      result: of the final evaluation, from `train.engine.evaluations.Evaluations.compare`.
      checkpoints: of the run.
      reporter: of the run.
    """
    best_by, others = result["best_by"], result.get("evaluations", {})
    rows = [*_scores(result, "evaluation", best_by)]
    for name, other in others.items():
        rows += _scores(other, name, None)
    latest = checkpoints.latest()
    if latest is not None:  # otherwise all saves failed, on a full disk for example
        rows += [
            ("checkpoint", checkpoints.path(latest)),
            ("best checkpoint", checkpoints.path(checkpoints.best() or latest)),
        ]
    pictures = reporter.pictures_path
    rows += [("pictures", pictures)] if pictures.is_dir() else []
    rows += [
        ("metrics", reporter.metrics_path),
        ("TensorBoard", reporter.tensorboard_path),
        ("curve", reporter.curve_path),
    ]
    tables = [table_text(result["table"])] if "table" in result else []
    return "\n".join(["", *tables, *(f"{name:17} {escaped(str(value))}" for name, value in rows)])


def _scores(
    compared: Mapping[str, Any], name: str, best_by: str | None
) -> Iterator[tuple[str, str]]:
    """Lines for both structures of a network and of its EMA."""
    note = f" ({compared['protocol']})" if "protocol" in compared else ""
    for title, scores in ((name, compared), ("EMA", compared.get("ema"))):
        if scores:
            yield title, _training_scores(scores, best_by) + note
            yield "re-parameterized", _merged_scores(scores, best_by, note)


def _training_scores(compared: Mapping[str, Any], best_by: str | None) -> str:
    scores = compared["training"]
    return f"{_format_scores(scores, best_by)} of {scores['examples']} images"


def _merged_scores(compared: Mapping[str, Any], best_by: str | None, note: str) -> str:
    if merged := compared.get("merged"):
        difference = f"largest difference of any output {compared['largest_difference']:.1e}"
        return f"{_format_scores(merged, best_by)}{note}, {difference}"
    return f"not possible: {compared['not_merged']}"


def _format_scores(scores: Mapping[str, float], best_by: str | None) -> str:
    """The score `best_by`, or all scores if that is None."""
    names = [best_by] if best_by else [name for name in scores if name != "examples"]
    return ", ".join(format_metric(name, scores[name]) for name in names)
