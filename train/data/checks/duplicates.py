"""Finds equal files by the hashes of their contents."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from train.reporting.examination import Finding

_MOST_SHARED = 0.01  # of the images of an evaluation: more is an error


class Contents(NamedTuple):
    """The contents of the images of a split.

    Attributes:
      split: its name.
      digests: 64-bit hashes, uint64 (N,).
      positions: of these images in the split, int64 (N,).
      origin: the name of the image at a position.
      annotation: what the data set says about the image at a position, in a form that can be
        compared: its label, for example.
    """

    split: str
    digests: np.ndarray
    positions: np.ndarray
    origin: Callable[[int], str]
    annotation: Callable[[int], object]


def within(contents: Contents) -> Iterator[Finding]:
    """A warning for each file that is in a split more than once."""
    order = np.argsort(contents.digests, kind="stable")
    ordered = contents.digests[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    runs = np.split(repeated, np.flatnonzero(np.diff(repeated) > 1) + 1)
    groups = [order[run[0] : run[-1] + 2] for run in runs if len(run)]
    for group in sorted(groups, key=lambda group: group[0]):
        places = contents.positions[group].tolist()
        names = [contents.origin(place) for place in places[:3]]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        same = f"{'; '.join(names)}{more} are the same file"
        if len({contents.annotation(place) for place in places}) > 1:
            yield Finding(
                "warning",
                "duplicate with another annotation",
                contents.split,
                f"{same} with different annotations, which contradict each other: keep the right "
                "one.",
            )
        else:
            yield Finding(
                "warning",
                "duplicate",
                contents.split,
                f"{same}, which counts for as many images: keep one.",
            )


def between(training: Contents, evaluation: Contents) -> Iterator[Finding]:
    """The files of an evaluation that are in the training split too.

    They are an error where they are more than 1 % of the evaluation: its scores would be too good.
    Published sets have a few.
    """
    order = np.argsort(training.digests, kind="stable")
    ordered = training.digests[order]
    found = np.searchsorted(ordered, evaluation.digests).clip(max=max(0, len(ordered) - 1))
    hits = np.flatnonzero(ordered[found] == evaluation.digests) if len(ordered) else []
    shared = [
        (int(evaluation.positions[hit]), int(training.positions[order[found[hit]]])) for hit in hits
    ]
    many = len(shared) > _MOST_SHARED * len(evaluation.positions)
    for place, training_place in shared:
        yield Finding(
            "error" if many else "warning",
            "in the training split",
            evaluation.split,
            f"{evaluation.origin(place)} is {training.origin(training_place)} of {training.split}, "
            "so scores are too good: remove it from one of the two splits.",
        )
