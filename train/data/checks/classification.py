"""Checks of data sets for classification."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from replk_jax.vision.images import ImageError
from train.data.checks import duplicates
from train.data.checks.pictures import Picture, PictureStatistics, look_at_picture, unreadable
from train.data.checks.scanning import scan
from train.data.pipeline import count_threads
from train.data.sources import LabelledImages, open_source
from train.errors import RunError
from train.reporting.console import collected_warnings
from train.reporting.examination import Examination, Finding, Table

_IMBALANCE = 10  # the largest class by the smallest one: more is a warning
_NO_LABEL = -1
_MOST_ROWS = 20  # classes in a table; of more, the smallest and the largest ones
_HEADER = ("split", "images", "classes", "smallest", "largest", "grey", "images per class")


class _Split(NamedTuple):
    """What is known about a split.

    Attributes:
      contents: for the search for duplicates.
      counts: the number of images of each class, int64 (K,).
      class_names: K names.
      statistics: of its pictures.
      findings: all but duplicates.
    """

    contents: duplicates.Contents
    counts: np.ndarray
    class_names: Sequence[str]
    statistics: PictureStatistics
    findings: list[Finding]


def examine_labelled_images(data: ConfigDict, splits: Sequence[str], channels: int) -> Examination:
    """Looks through the splits of a classification data set.

    Args:
      data: the section `data` of configs/common.py.
      splits: names of the splits, without repetition; the first one is for training.
      channels: of the network's input.

    Returns:
      Findings and statistics. A split that cannot be opened is a finding.
    """
    findings: list[Finding] = []
    found: list[_Split] = []
    for split in splits:
        with collected_warnings() as warnings:
            try:
                source = open_source(data, split)
            except RunError as error:
                message = " ".join(str(error).split())
                findings.append(Finding("error", "cannot be opened", split, message))
                continue
        findings += [Finding("warning", "other files", split, text) for text in warnings]
        found.append(_examine_split(source, split, data, channels))
        findings += found[-1].findings
        findings += duplicates.within(found[-1].contents)
    if found and found[0].contents.split == splits[0]:
        training = found[0]
        for other in found[1:]:
            findings += _class_differences(training, other)
            findings += duplicates.between(training.contents, other.contents)
    statistics = {split.contents.split: _statistics(split) for split in found}
    return Examination(findings, [*_tables(found)], statistics)


class _Seen(NamedTuple):
    """An example: its picture and label, or why it has no label."""

    picture: Picture | None
    label: int
    problem: str | None


def _examine_split(source: LabelledImages, split: str, data: ConfigDict, channels: int) -> _Split:
    def look_at(index: int) -> _Seen:
        try:
            example = source[index]
        except ImageError as error:
            return _Seen(unreadable(str(index), error), _NO_LABEL, None)
        except RunError as error:
            return _Seen(None, _NO_LABEL, str(error))
        picture = look_at_picture(example["image"], example["origin"], channels)
        return _Seen(picture, int(example["label"]), None)

    statistics = PictureStatistics(split, data.unreadable == "replace")
    unlabelled: list[Finding] = []
    digests, positions, labels = array("Q"), array("q"), array("i")
    seen = scan(look_at, len(source), threads=count_threads(data.reading), title=split)
    for position, (picture, label, problem) in enumerate(seen):
        if problem is not None:
            unlabelled.append(Finding("error", "no label", split, problem))
        if picture is not None:
            statistics.add(picture)
            if picture.size is not None:
                digests.append(picture.digest)
                positions.append(position)
                labels.append(label)
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(source.class_names))
    contents = duplicates.Contents(
        split,
        np.asarray(digests, np.uint64),
        np.asarray(positions, np.int64),
        lambda position: source[position]["origin"],
        lambda position: int(source[position]["label"]),
    )
    findings = [
        *unlabelled,
        *statistics.all_findings(channels),
        *_balance(counts, source.class_names, split),
        *statistics.smaller_than(data.image_size),
    ]
    return _Split(contents, counts, source.class_names, statistics, findings)


def _balance(counts: np.ndarray, class_names: Sequence[str], split: str) -> Iterator[Finding]:
    for name in np.asarray(class_names, object)[counts == 0]:
        yield Finding(
            "warning",
            "empty class",
            split,
            f"the class {name} has no image that can be read: add some, or remove the class from "
            "the data set.",
        )
    some = np.flatnonzero(counts)
    if not some.size:
        return
    least, most = some[counts[some].argmin()], some[counts[some].argmax()]
    if counts[most] > _IMBALANCE * counts[least]:
        yield Finding(
            "warning",
            "imbalance",
            split,
            f"the class {class_names[most]} has {counts[most]:,} images, "
            f"{counts[most] / counts[least]:.0f} times as many as {class_names[least]} with "
            f"{counts[least]:,}: the network will favour large classes; add images of small ones, "
            "or look at the accuracy of each class.",
        )


def _class_differences(training: _Split, other: _Split) -> Iterator[Finding]:
    first, second = training.class_names, other.class_names
    split = other.contents.split
    for names, missing_in in ((first, second), (second, first)):
        for name in sorted(set(names) - set(missing_in)):
            has, lacks = (training, other) if names is first else (other, training)
            yield Finding(
                "error",
                "different classes",
                split,
                f"the class {name} of {has.contents.split} is missing in {lacks.contents.split}, "
                "and labels are counted over the classes of a split: give all splits the same "
                "class folders.",
            )
    if set(first) == set(second) and list(first) != list(second):
        yield Finding(
            "error",
            "different classes",
            split,
            f"the classes have another order than in {training.contents.split}: prepare both "
            "splits from one list of classes.",
        )


def _tables(splits: Sequence[_Split]) -> Iterator[Table]:
    if not splits:
        return
    rows = []
    for split in splits:
        counts, statistics = split.counts, split.statistics
        grey = f"{statistics.grey / statistics.readable:.1%}" if statistics.readable else "-"
        rows.append(
            (
                split.contents.split,
                f"{statistics.readable:,}",
                f"{len(counts):,}",
                *statistics.sizes(),
                grey,
                f"{counts.min():,} to {counts.max():,}",
            )
        )
    yield Table(_HEADER, rows)
    names = splits[0].class_names
    columns = [split for split in splits if list(split.class_names) == list(names)]
    order = range(len(names))
    if len(names) > _MOST_ROWS:
        by_size = np.argsort(-splits[0].counts, kind="stable")
        order = [*by_size[: _MOST_ROWS // 2], *by_size[-_MOST_ROWS // 2 :]]
    yield Table(
        ("class", *(split.contents.split for split in columns)),
        [(names[i], *(f"{split.counts[i]:,}" for split in columns)) for i in order],
    )


def _statistics(split: _Split) -> dict[str, Any]:
    smallest, largest = split.statistics.sizes()
    return {
        "images": split.statistics.readable,
        "smallest": smallest,
        "largest": largest,
        "grey": split.statistics.grey,
        "images_per_class": dict(zip(split.class_names, split.counts.tolist(), strict=True)),
    }
