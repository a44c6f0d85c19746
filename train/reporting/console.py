"""What is said to the user, and how numbers are put into words."""

import sys
from typing import TextIO

from tqdm import tqdm

from replk_jax.io.text import escaped_lines

# What is said of the metrics, all of which the files hold, and in which order. Other scores of an
# evaluation follow.
WORDS = {
    "loss": "loss {:.4g}",
    "top1": "top-1 {:.2%}",
    "top5": "top-5 {:.2%}",
    "images_per_second": "{:,.1f} images/s",
    "learning_rate": "learning rate {:.3g}",
    "mfu": "MFU {:.1%}",
    "data_wait": "data wait {:.1%}",
}


def say(text: str) -> None:
    """A line for the user, above the bar if there is one."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """A line that the user must not miss, to standard error; from any process of a run."""
    _write(f"warning: {text}", sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    tqdm.write(escaped_lines(text), file=stream)
    stream.flush()


def duration(seconds: float) -> str:
    """In two units: "2 d 05 h", "12 h 03 min", "7 min", "42 s"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def in_words(name: str, value: float) -> str:
    """A metric, whatever it is."""
    return WORDS.get(name, f"{name} {{:.4g}}").format(value)


def score_title(score: str) -> str:
    """What a score is called over a panel or a column: `top1` is "top-1"."""
    return WORDS.get(score, score).partition(" ")[0]
