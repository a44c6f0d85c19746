"""Messages to the user, and the formats of metrics in them."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TextIO

from tqdm import tqdm

from replk_jax.io.text import escaped, escaped_lines

# Formats of the metrics in messages, in their order there. Other scores of an evaluation follow.
FORMATS = {
    "loss": "loss {:.4g}",
    "top1": "top-1 {:.2%}",
    "top5": "top-5 {:.2%}",
    "mIoU": "mIoU {:.2%}",
    "mAcc": "mAcc {:.2%}",
    "aAcc": "aAcc {:.2%}",
    **{
        f"{kind}{score}": f"{kind.replace('_', ' ')}{score.replace('_', ' ')} {{:.2%}}"
        for kind in ("", "mask_")
        for score in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
    },
    "images_per_second": "{:,.1f} images/s",
    "learning_rate": "learning rate {:.3g}",
    "mfu": "MFU {:.1%}",
    "data_wait": "data wait {:.1%}",
}


_collections: list[list[str]] = []  # of `collected_warnings`, the innermost last


def say(text: str) -> None:
    """Prints a line to standard output, above the progress bar if there is one."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """Prints a warning to standard error, unless `collected_warnings` collects it."""
    if _collections:
        _collections[-1].append(text)
    else:
        _write(f"warning: {text}", sys.stderr)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """A context manager: the warnings within are in its list, and not printed."""
    _collections.append([])
    try:
        yield _collections[-1]
    finally:
        _collections.pop()


def _write(text: str, stream: TextIO) -> None:
    tqdm.write(escaped_lines(text), file=stream)
    stream.flush()


def duration(seconds: float) -> str:
    """A duration in at most two units: "2 d 05 h", "12 h 03 min", "7 min", "42 s"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def format_metric(name: str, value: float) -> str:
    """A metric with its name: "top-1 83.48%" for `top1`."""
    return FORMATS.get(name, f"{name} {{:.4g}}").format(value)


def table_text(table: Mapping[str, Mapping[str, float | None]]) -> str:
    """Numbers between 0 and 1 in per cent, by row and column; "-" for None.

    Args:
      table: rows with the same columns.
    """
    columns = list(next(iter(table.values()), {}))
    lines = [["", *columns]]
    for name, row in table.items():
        cells = ["-" if value is None else f"{100 * value:.2f}" for value in row.values()]
        lines.append([escaped(name), *cells])
    name_width = max(len(line[0]) for line in lines)
    widths = [max(map(len, cells)) for cells in zip(*(line[1:] for line in lines), strict=True)]
    return "\n".join(
        "  ".join([name.ljust(name_width), *map(str.rjust, cells, widths)]).rstrip()
        for name, *cells in lines
    )


def score_title(score: str) -> str:
    """The title of a score: "top-1" for `top1`."""
    return FORMATS.get(score, score).partition(" {")[0]
