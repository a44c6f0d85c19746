"""Compares finished runs in a table in Markdown: top-1 accuracy, in per cent, and its spread.

    python -m train.compare out/study/*

Runs whose configurations differ in nothing but the seed are one row; what the rows differ in has a
column each. Of several runs there are the mean, the standard deviation of a run (n - 1), the lowest
and the highest.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict

from train.errors import RunError
from train.reporting import warn


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: its folder.
      fields: of its configuration but for the seed, by path, in JSON.
      seed: which one.
      top1: of the network, a share of 1.
      ema_top1: of the moving average, if there is one.
    """

    workdir: Path
    fields: dict[str, str]
    seed: int
    top1: float
    ema_top1: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; ends it with exit status 1 and a line where it cannot go on."""
    try:
        print(table(read_runs(_parser().parse_args(arguments).workdir)))
    except (RunError, OSError) as error:
        sys.exit(f"error: {error}")


def read_runs(workdirs: Iterable[Path]) -> list[Run]:
    """The finished runs in some folders; those that are not finished are warned of.

    Raises:
      RunError: a folder is not that of a run, or no run is finished.
    """
    runs = []
    for workdir in workdirs:
        if not (workdir / "config.json").exists():
            raise RunError(f"{workdir} is not the folder of a run: it has no config.json.")
        if (workdir / "result.json").exists():
            runs.append(_read(workdir))
        else:
            warn(f"{workdir} is left out: its run is not finished, for it has no result.json.")
    if not runs:
        raise RunError("None of these runs is finished.")
    return runs


def table(runs: Sequence[Run]) -> str:
    """The table, in Markdown; rows in the order of their first runs.

    Raises:
      RunError: two runs differ in nothing at all, as when a folder is named twice.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    for group in groups.values():
        _require_other_seeds(group)
    rows = list(groups.values())
    differing = _differing([group[0].fields for group in rows])
    averaged = any(run.ema_top1 is not None for run in runs)
    head = [*differing, "runs", *_statistics_head("top-1")]
    head += _statistics_head("EMA top-1") if averaged else []
    body = []
    for group in rows:
        cells = [group[0].fields.get(field, "") for field in differing]
        cells += [str(len(group)), *_statistics(run.top1 for run in group)]
        cells += _statistics(run.ema_top1 for run in group) if averaged else []
        body.append(cells)
    return _markdown(head, body, words=len(differing))


def _read(workdir: Path) -> Run:
    config = json.loads((workdir / "config.json").read_text())
    result = json.loads((workdir / "result.json").read_text())
    seed = config.pop("seed")
    fields = flatten_dict(config, sep=".")
    ema = result.get("ema")
    return Run(
        workdir,
        {field: json.dumps(value).strip('"') for field, value in fields.items()},
        seed,
        result["training"]["top1"],
        ema["training"]["top1"] if ema else None,
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


def _statistics_head(name: str) -> list[str]:
    return [name, "std", "min", "max"]


def _statistics(shares: Iterable[float | None]) -> list[str]:
    """Mean, deviation, minimum and maximum, in per cent; empty cells where there is no value."""
    values = [100 * share for share in shares if share is not None]
    if not values:
        return [""] * 4
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return [
        f"{statistics.mean(values):.2f}", deviation, f"{min(values):.2f}", f"{max(values):.2f}"
    ]  # fmt: skip


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
    parser.add_argument("workdir", nargs="+", type=Path, help="folder of a run")
    return parser


if __name__ == "__main__":
    main()
