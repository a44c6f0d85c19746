"""Compares finished runs in a table in Markdown: how good they became, in per cent, and the spread.

    python -m train.compare out/study/*

What is compared is the score by which a run finds its best checkpoint, top-1 accuracy in
classification. Runs whose configurations differ in nothing but the seed are one row, named by the
fields in which the rows differ. Fields that do not bear on the outcome make no difference: where
data lie and how they are read, the devices, remat, and what is logged, evaluated and saved on the
way. Of several runs there are the mean, the standard deviation of a run (n - 1), the lowest and the
highest.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from replk_jax.cli.argument_types import user_path
from replk_jax.cli.clean_exit import clean_exit
from replk_jax.io.text import escape_unencodable_output
from train.errors import RunError, stopping
from train.reporting.console import score_title

# Fields, or sections of them, that name places or say how a run is carried out.
_NO_DIFFERENCE = (
    "checkpoints",
    "data.data_dir",
    "data.reading",
    "distributed",
    "eval_batch_size",
    "eval_every_epochs",
    "log_every_steps",
    "mesh",
    "model.remat",
    "profile",
    "wandb",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: its folder.
      fields: of its configuration that bear on the outcome but for the seed, by path, in words.
      seed: which one.
      examples: images that it was evaluated on.
      best_by: the name of the score that counts.
      score: of the network, a share of 1.
      ema_score: of the moving average, if there is one.
    """

    workdir: Path
    fields: dict[str, str]
    seed: int
    examples: int
    best_by: str
    score: float
    ema_score: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; ends it with exit status 1 and a line where it cannot continue."""
    escape_unencodable_output()
    workdirs = _parser().parse_args(arguments).workdir
    with stopping():
        print(table([read_run(workdir) for workdir in workdirs]))


def read_run(workdir: Path) -> Run:
    """The finished run in a folder.

    Raises:
      RunError: there is none, it is not finished, its score is NaN or infinite, or a file of it
        is damaged.
    """
    if not workdir.is_dir():
        raise RunError(f"There is no folder {workdir}.")
    result = _read(
        workdir / "result.json",
        "its run is not finished; start it again with the same --workdir, or leave it out",
    )
    config = _read(workdir / "config.json", "it is not the folder of a training run")
    if "best_by" not in result:
        raise RunError(
            f"{workdir / 'result.json'} does not say which score counts: start its run again with "
            "the same --workdir, which only evaluates it anew."
        )
    fields = flatten_dict(config, sep=".")
    best_by, ema = result["best_by"], result.get("ema")
    try:
        run = Run(
            workdir=workdir,
            fields={field: _in_words(value) for field, value in fields.items() if _counts(field)},
            seed=config["seed"],
            examples=result["training"]["examples"],
            best_by=best_by,
            score=_share(result["training"][best_by]),
            ema_score=_share(ema["training"][best_by]) if ema else None,
        )
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{workdir}: result.json or config.json is damaged ({error!r}). Start its run again "
            "with the same --workdir, or leave it out."
        ) from error
    for score in (run.score, run.ema_score):
        if score is not None and not math.isfinite(score):
            raise RunError(f"{workdir}: its {best_by} is NaN or infinite. Leave it out.")
    return run


def table(runs: Sequence[Run]) -> str:
    """The table, in Markdown; rows in the order of their first runs.

    Raises:
      RunError: runs that were evaluated on different numbers of images or by different scores, or
        that differ in nothing at all, as when a folder is named twice.
    """
    _require_same_evaluation(runs)
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    rows = list(groups.values())
    for group in rows:
        _require_other_seeds(group)
    differing = _differing([group[0].fields for group in rows])
    averaged = any(run.ema_score is not None for run in runs)
    score = score_title(runs[0].best_by)
    head = ["configuration", "runs", score, "min", "max"]
    head += [f"EMA {score}", "min", "max"] if averaged else []
    body = []
    for group in rows:
        cells = [_name(group[0].fields, differing), str(len(group))]
        cells += _statistics(run.score for run in group)
        cells += _statistics(run.ema_score for run in group) if averaged else []
        body.append(cells)
    return _markdown(head, body, words=1)


def _read(path: Path, absence: str) -> dict[str, Any]:
    if not path.exists():
        raise RunError(f"{path.parent} has no {path.name}: {absence}.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object.")
    return content


def _share(value: float | None) -> float:
    """A score; null stands for NaN and infinite ones."""
    return math.nan if value is None else float(value)


def _counts(field: str) -> bool:
    return field != "seed" and not f"{field}.".startswith(tuple(f"{n}." for n in _NO_DIFFERENCE))


def _in_words(value: Any) -> str:
    """As it would be set on the command line."""
    return str(tuple(value) if isinstance(value, list) else value)


def _require_same_evaluation(runs: Sequence[Run]) -> None:
    first, *others = runs
    for run in others:
        if run.best_by != first.best_by:
            raise RunError(
                f"In {first.workdir} the score that counts is {first.best_by}, in {run.workdir} "
                f"{run.best_by}: only runs of the same task can be compared."
            )
        if run.examples != first.examples:
            raise RunError(
                f"{first.workdir} was evaluated on {first.examples} images, {run.workdir} on "
                f"{run.examples}: only runs with the same evaluation set can be compared."
            )


def _require_other_seeds(group: Sequence[Run]) -> None:
    """A run beside its own repetition would make the spread look smaller than it is."""
    first: dict[int, Path] = {}
    for run in group:
        if run.seed in first:
            raise RunError(
                f"{first[run.seed]} and {run.workdir} have the same configuration and the same "
                f"seed, {run.seed}: leave one of them out."
            )
        first[run.seed] = run.workdir


def _differing(rows: Sequence[dict[str, str]]) -> list[str]:
    """Fields whose values, or whose presence, are not the same in all rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({row.get(name) for row in rows}) > 1]


def _name(fields: dict[str, str], differing: Sequence[str]) -> str:
    """`model.replknet.small_kernel=3`; unset is what a run from before there was the field has."""
    return ", ".join(f"{name}={fields.get(name, 'unset')}" for name in differing) or "all runs"


def _statistics(shares: Iterable[float | None]) -> list[str]:
    """Mean with deviation, minimum and maximum, in per cent; empty cells without any value."""
    values = [100 * share for share in shares if share is not None]
    if not values:
        return [""] * 3
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return [f"{statistics.mean(values):.2f}{deviation}", f"{min(values):.2f}", f"{max(values):.2f}"]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first columns are words, to the left, and the others numbers, to the right."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (head, *body)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [
        "-" * width if column < words else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = [
        " | ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", nargs="+", type=user_path, help="folder of a run")
    return parser


if __name__ == "__main__":
    with clean_exit():
        main()
