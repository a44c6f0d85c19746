"""What a run prints at its end: its scores, and where its files are."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from replk_jax.io.text import escaped
from train.reporting.console import in_words
from train.reporting.reporter import Reporter


class SavedSteps(Protocol):
    """The checkpoints of a run."""

    def latest(self) -> int | None: ...

    def best(self) -> int | None: ...

    def path(self, step: int) -> Path: ...


def closing_words(result: Mapping[str, Any], checkpoints: SavedSteps, reporter: Reporter) -> str:
    """A table of the result of a run, as `engine.loop.run` returns it, and of its files."""
    best_by, others = result["best_by"], result.get("evaluations", {})
    rows = [*_scores(result, "evaluation", best_by)]
    for name, other in others.items():
        rows += _scores(other, name, None)
    latest = checkpoints.latest()
    if latest is not None:  # every save may have failed, for want of space
        rows += [
            ("checkpoint", checkpoints.path(latest)),
            ("best checkpoint", checkpoints.path(checkpoints.best() or latest)),
        ]
    rows += [
        ("metrics", reporter.metrics_path),
        ("TensorBoard", reporter.tensorboard_path),
        ("curve", reporter.curve_path),
    ]
    return "\n" + "\n".join(f"{name:17} {escaped(str(value))}" for name, value in rows)


def _scores(
    compared: Mapping[str, Any], name: str, best_by: str | None
) -> Iterator[tuple[str, str]]:
    """Lines on both structures of a network and of its EMA."""
    yield name, _in_training(compared, best_by)
    yield "re-parameterized", _after_merging(compared, best_by)
    if ema := compared.get("ema"):
        yield "EMA", _in_training(ema, best_by)
        yield "re-parameterized", _after_merging(ema, best_by)


def _in_training(compared: Mapping[str, Any], best_by: str | None) -> str:
    scores = compared["training"]
    return f"{_words(scores, best_by)} of {scores['examples']} images"


def _after_merging(compared: Mapping[str, Any], best_by: str | None) -> str:
    if merged := compared.get("merged"):
        difference = f"largest difference of any output {compared['largest_difference']:.1e}"
        return f"{_words(merged, best_by)}, {difference}"
    return f"not possible: {compared['not_merged']}"


def _words(scores: Mapping[str, float], best_by: str | None) -> str:
    """The score that counts, or all of them."""
    names = [best_by] if best_by else [name for name in scores if name != "examples"]
    return ", ".join(in_words(name, scores[name]) for name in names)
