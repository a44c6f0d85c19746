"""Checks of data sets for object detection and instance segmentation."""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from replk_jax.vision.images import ImageError
from train.data.annotated_images import DetectionSource
from train.data.checks import duplicates
from train.data.checks.object_statistics import ObjectStatistics
from train.data.checks.pictures import (
    Picture,
    PictureStatistics,
    format_size,
    look_at_picture,
    unreadable,
)
from train.data.checks.scanning import scan
from train.data.detection_sources import find_objects
from train.data.pipeline import count_threads
from train.errors import RunError
from train.reporting.console import collected_warnings
from train.reporting.examination import Examination, Finding, Problem, Table


class _Split(NamedTuple):
    """What is known about a split."""

    contents: duplicates.Contents
    pictures: PictureStatistics
    objects: ObjectStatistics


def examine_objects(data: ConfigDict, splits: Sequence[str]) -> Examination:
    """Looks through the splits of a detection data set.

    Args:
      data: the section `config.data` of detection; see `train.data.detection_sources`.
      splits: names of the splits, without repetition; the first one is for training.

    Returns:
      Findings and statistics. A split that cannot be opened is a finding.
    """
    findings: list[Finding] = []
    found: list[_Split] = []
    for split in splits:
        with collected_warnings() as warnings:
            try:
                source = find_objects(data, split)
            except RunError as error:
                message = " ".join(str(error).split())
                findings.append(Finding("error", "cannot be opened", split, message))
                continue
        findings += [Finding("warning", "other files", split, text) for text in warnings]
        findings += [problem.found_in(split) for problem in source.problems]
        if not len(source):
            findings.append(
                Finding("error", "no images", split, "the annotations have no images: add them.")
            )
            continue
        opened, problems = _examine_split(source, split, data)
        findings += opened.pictures.all_findings(channels=3)
        findings += opened.objects.findings()
        findings += problems
        findings += duplicates.within(opened.contents)
        found.append(opened)
    if found and found[0].contents.split == splits[0]:
        training = found[0]
        findings += training.objects.missing_categories()
        for other in found[1:]:
            findings += other.objects.missing_categories(training.objects)
            findings += duplicates.between(training.contents, other.contents)
    statistics = {
        split.contents.split: {
            "images": split.pictures.readable,
            "smallest": split.pictures.sizes()[0],
            "largest": split.pictures.sizes()[1],
            **split.objects.statistics(),
        }
        for split in found
    }
    return Examination(findings, [*_tables(found)], statistics)


class _Seen(NamedTuple):
    """An image, and what is wrong with its size or its masks."""

    picture: Picture
    problems: tuple[Problem, ...]


def _examine_split(
    source: DetectionSource, split: str, data: ConfigDict
) -> tuple[_Split, list[Finding]]:
    """What is known about a split, and the images and masks that cannot be used."""

    def look_at(index: int) -> _Seen:
        try:
            stored = source.reader.read(index)
        except ImageError as error:
            return _Seen(unreadable(source.reader.origin(index), error), ())
        picture = look_at_picture(stored.data, stored.origin, channels=3, upright=True)
        problems = [*_wrong_size(picture, source.table.size(index))]
        if stored.masks is not None:
            size = source.table.size(index)
            for number in source.table.objects(index).numbers.tolist():
                try:
                    empty = not stored.masks.bitmap(number, *size).any()
                except ImageError as error:
                    problems.append(Problem("error", "unusable mask", str(error)))
                    continue
                if empty:
                    problems.append(
                        Problem(
                            "warning",
                            "empty mask",
                            f"the mask of object {number + 1} of {stored.origin} has no pixel: "
                            "the object trains with an empty mask; correct or remove it.",
                        )
                    )
        return _Seen(picture, tuple(problems))

    pictures = PictureStatistics(split, data["unreadable"] == "replace")
    problems: list[Finding] = []
    digests, positions = array("Q"), array("q")
    seen = scan(look_at, len(source), threads=count_threads(data["reading"]), title=split)
    for position, (picture, of_image) in enumerate(seen):
        pictures.add(picture)
        if picture.size is not None:
            digests.append(picture.digest)
            positions.append(position)
        problems += [problem.found_in(split) for problem in of_image]

    def annotation(position: int) -> object:
        objects = source.table.objects(position)
        return objects.boxes.tobytes(), objects.classes.tobytes()

    contents = duplicates.Contents(
        split,
        np.asarray(digests, np.uint64),
        np.asarray(positions, np.int64),
        source.reader.origin,
        annotation,
    )
    objects = ObjectStatistics(split, source, data["max_objects"])
    return _Split(contents, pictures, objects), problems


def _wrong_size(picture: Picture, size: tuple[int, int]) -> Iterator[Problem]:
    height, width = size
    if picture.size not in (None, (width, height)):
        yield Problem(
            "error",
            "another size than stated",
            f"{picture.origin} has {format_size(picture.size)} pixels when it is upright, and its "
            f"annotations are for {width} x {height}: training stops at it; correct the one that "
            "is wrong.",
        )


def _tables(splits: Sequence[_Split]) -> Iterator[Table]:
    if not splits:
        return
    yield Table(
        ("split", "images", "smallest", "largest", "without objects", "objects", "crowds",
         "most in an image", "small", "medium", "large"),
        [
            (
                split.contents.split,
                f"{split.pictures.readable:,}",
                *split.pictures.sizes(),
                *split.objects.columns(),
            )
            for split in splits
        ],
    )  # fmt: skip
    names = splits[0].objects.class_names
    columns = [split for split in splits if split.objects.class_names == names]
    header = ["category"]
    for split in columns:
        header += [f"{split.contents.split} objects", "images"]
    rows = []
    for number, name in enumerate(names):
        row = [name]
        for split in columns:
            row += [f"{split.objects.of_class[number]:,}", f"{split.objects.images_of[number]:,}"]
        rows.append(row)
    yield Table(header, rows)
