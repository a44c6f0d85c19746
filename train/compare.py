"""Compares the scores of finished runs in a Markdown table, in per cent.

    python -m train.compare out/study/*

The score is the one that decides which checkpoint is the best: top-1 accuracy in classification,
mIoU in segmentation, with the protocol of the test in a column of its own.
Runs whose configurations differ only in the seed are one row: mean, standard deviation (n - 1),
minimum and maximum. A row is named by the fields in which the rows differ. Fields without influence
on the result are ignored: paths of data and options for reading them, devices, remat, logging,
evaluations and checkpoints during the run.
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
from train.engine.config import in_this_version
from train.errors import RunError, stopping
from train.reporting.console import score_title

# Fields and sections without influence on the result.
_IGNORED = (
    "checkpoints",
    "data.data_dir",
    "data.more_eval_splits",
    "data.reading",
    "distributed",
    "eval_batch_size",
    "eval_every_epochs",
    "eval_every_steps",
    "log_every_steps",
    "mesh",
    "model.remat",
    "profile",
    "test.library",
    "test.pictures",
    "wandb",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: its folder.
      fields: of its configuration, without the seed and ignored ones: values as text, by path.
      seed: of the run.
      examples: number of images that it was evaluated on.
      best_by: name of the score.
      score: of the network, between 0 and 1.
      ema_score: of the EMA; None if there is none.
      protocol: of the test, in words; None if images do not differ in size.
    """

    workdir: Path
    fields: dict[str, str]
    seed: int
    examples: int
    best_by: str
    score: float
    ema_score: float | None
    protocol: str | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; errors end it with a message and exit status 1."""
    escape_unencodable_output()
    workdirs = _parser().parse_args(arguments).workdir
    with stopping():
        print(table([read_run(workdir) for workdir in workdirs]))


def read_run(workdir: Path) -> Run:
    """The finished run in a folder.

    Raises:
      RunError: the folder has no run, the run is not finished, its score is NaN or infinite, or a
        file of it is damaged.
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
            f"{workdir / 'result.json'} has no `best_by`: start its run again with the same "
            "--workdir, which only evaluates it again."
        )
    fields = in_this_version(flatten_dict(config, sep="."))
    best_by, ema = result["best_by"], result.get("ema")
    try:
        run = Run(
            workdir=workdir,
            fields={f: _as_flag_value(v) for f, v in fields.items() if not _is_ignored(f)},
            seed=config["seed"],
            examples=result["training"]["examples"],
            best_by=best_by,
            score=_as_score(result["training"][best_by]),
            ema_score=_as_score(ema["training"][best_by]) if ema else None,
            protocol=result.get("protocol"),
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
    """The table in Markdown; rows are in the order of their first runs.

    Raises:
      RunError: the runs were evaluated on different numbers of images or have different scores; or
        two runs have the same configuration and seed.
    """
    _require_same_evaluation(runs)
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    rows = list(groups.values())
    for group in rows:
        _require_other_seeds(group)
    differing = _differing([group[0].fields for group in rows])
    has_ema = any(run.ema_score is not None for run in runs)
    score = score_title(runs[0].best_by)
    texts = ["configuration"]
    texts += ["protocol"] if any(run.protocol for run in runs) else []
    head = [*texts, "runs", score, "min", "max"]
    head += [f"EMA {score}", "min", "max"] if has_ema else []
    body = []
    for group in rows:
        cells = [_name(group[0].fields, differing), group[0].protocol or ""][: len(texts)]
        cells.append(str(len(group)))
        cells += _statistics(run.score for run in group)
        cells += _statistics(run.ema_score for run in group) if has_ema else []
        body.append(cells)
    return _markdown(head, body, text_columns=len(texts))


def _read(path: Path, if_missing: str) -> dict[str, Any]:
    if not path.exists():
        raise RunError(f"{path.parent} has no {path.name}: {if_missing}.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it is no JSON object.")
    return content


def _as_score(value: float | None) -> float:
    """A score from JSON, where NaN and infinite ones are null."""
    return math.nan if value is None else float(value)


def _is_ignored(field: str) -> bool:
    return field == "seed" or f"{field}.".startswith(tuple(f"{name}." for name in _IGNORED))


def _as_flag_value(value: Any) -> str:
    """A value as it would be set on the command line."""
    return str(tuple(value) if isinstance(value, list) else value)


def _require_same_evaluation(runs: Sequence[Run]) -> None:
    first, *others = runs
    for run in others:
        if run.best_by != first.best_by:
            raise RunError(
                f"The score of {first.workdir} is {first.best_by}, that of {run.workdir} is "
                f"{run.best_by}: only runs of the same task can be compared."
            )
        if run.examples != first.examples:
            raise RunError(
                f"{first.workdir} was evaluated on {first.examples} images, {run.workdir} on "
                f"{run.examples}: only runs with the same evaluation set can be compared."
            )


def _require_other_seeds(group: Sequence[Run]) -> None:
    """Raises RunError for two runs with the same seed, which would reduce the deviation."""
    first: dict[int, Path] = {}
    for run in group:
        if run.seed in first:
            raise RunError(
                f"{first[run.seed]} and {run.workdir} have the same configuration and the same "
                f"seed, {run.seed}: leave one of them out."
            )
        first[run.seed] = run.workdir


def _differing(rows: Sequence[dict[str, str]]) -> list[str]:
    """The fields that differ between rows, or that some rows lack."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({row.get(name) for row in rows}) > 1]


def _name(fields: dict[str, str], differing: Sequence[str]) -> str:
    """`model.replknet.small_kernel=3`; `unset` for a field that is newer than the run."""
    return ", ".join(f"{name}={fields.get(name, 'unset')}" for name in differing) or "all runs"


def _statistics(scores: Iterable[float | None]) -> list[str]:
    """Mean with standard deviation, minimum and maximum, in per cent; empty without values."""
    values = [100 * score for score in scores if score is not None]
    if not values:
        return [""] * 3
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return [f"{statistics.mean(values):.2f}{deviation}", f"{min(values):.2f}", f"{max(values):.2f}"]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], text_columns: int) -> str:
    """A table. The first columns are text, aligned left; the others are numbers, aligned right."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (head, *body)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [
        "-" * width if column < text_columns else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = [
        " | ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
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
