"""Checks of data sets for semantic segmentation."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import LabelSet
from train.data.checks import duplicates
from train.data.checks.mask_files import LookedAtMask, look_at_mask, wrong_size
from train.data.checks.mask_statistics import MaskStatistics
from train.data.checks.pictures import Picture, PictureStatistics, look_at_picture, unreadable
from train.data.checks.scanning import scan
from train.data.paired_files import require_pairs
from train.data.pipeline import count_threads
from train.data.segmentation_folders import find_pairs
from train.data.segmentation_sources import (
    SegmentationFolder,
    SegmentationSource,
    open_segmentation_source,
)
from train.errors import RunError
from train.reporting.console import collected_warnings
from train.reporting.examination import Examination, Finding, Table


class _Split(NamedTuple):
    """What is known about a split."""

    contents: duplicates.Contents
    pictures: PictureStatistics
    masks: MaskStatistics


def examine_masks(data: ConfigDict, splits: Sequence[str]) -> Examination:
    """Looks through the splits of a segmentation data set.

    Args:
      data: the section `config.data` of segmentation; see `train.data.segmentation_sources`.
      splits: names of the splits, without repetition; the first one is for training.

    Returns:
      Findings and statistics. A split that cannot be opened is a finding.
    """
    findings: list[Finding] = []
    found: list[_Split] = []
    for split in splits:
        with collected_warnings() as warnings:
            try:
                source, missing = _open(data, split)
            except RunError as error:
                message = " ".join(str(error).split())
                findings.append(Finding("error", "cannot be opened", split, message))
                continue
        findings += [Finding("warning", "other files", split, text) for text in warnings]
        findings += missing
        opened, problems = _examine_split(source, split, data)
        findings += problems
        findings += opened.pictures.all_findings(channels=3)
        findings += opened.masks.findings()
        findings += duplicates.within(opened.contents)
        found.append(opened)
    if found and found[0].contents.split == splits[0]:
        training = found[0]
        findings += training.masks.classes_that_are_missing()
        for other in found[1:]:
            findings += other.masks.classes_that_are_missing(training.masks)
            findings += duplicates.between(training.contents, other.contents)
    statistics = {
        split.contents.split: {
            "images": split.pictures.readable,
            "smallest": split.pictures.sizes()[0],
            "largest": split.pictures.sizes()[1],
            **split.masks.statistics(),
        }
        for split in found
    }
    return Examination(findings, [*_tables(found)], statistics)


def _open(data: Mapping[str, Any], split: str) -> tuple[SegmentationSource, list[Finding]]:
    """The pairs of a split, and findings for files without the other of the pair.

    Raises:
      RunError: the split cannot be opened, or has no pairs.
    """
    if not data["folder"]:
        return open_segmentation_source(data, split), []
    folder = Path(data["folder"]).expanduser()
    files = find_pairs(data, split)
    if not files.pairs:
        require_pairs(files, folder, split)
    of_list = f"of the list of {split}"
    findings = [
        Finding(
            "error",
            f"{has} without {lacks}",
            split,
            f"the {has} {name} has no {lacks}: add it, or remove the {has}. {files.expected}",
        )
        for has, lacks, names in (
            ("image", "mask", [folder / name for name in files.without_mask]),
            ("mask", "image", [folder / name for name in files.without_image]),
            ("name", "image", [f"{name} {of_list}" for name in files.missing]),
        )
        for name in names
    ]
    return SegmentationFolder(folder, files), findings


class _Seen(NamedTuple):
    """An image and its mask; the mask is None if one of the files could not be opened."""

    picture: Picture
    mask: LookedAtMask | None
    mask_origin: str


def _examine_split(
    source: SegmentationSource, split: str, data: ConfigDict
) -> tuple[_Split, list[Finding]]:
    """What is known about a split, and the masks that cannot be used."""

    def look_at(index: int) -> _Seen:
        try:
            example = source[index]
        except ImageError as error:
            return _Seen(unreadable(str(index), error), None, "")
        picture = look_at_picture(example["image"], example["origin"], channels=3, upright=True)
        mask = look_at_mask(example["mask"], example["mask_origin"], source.label_set)
        return _Seen(picture, mask, example["mask_origin"])

    pictures = PictureStatistics(split, data["unreadable"] == "replace")
    masks = MaskStatistics(split, source.label_set)
    problems: list[Finding] = []
    digests, positions = array("Q"), array("q")
    seen = scan(look_at, len(source), threads=count_threads(data["reading"]), title=split)
    for position, (picture, mask, mask_origin) in enumerate(seen):
        pictures.add(picture)
        if mask is None:
            continue
        if mask.counts is not None:
            masks.add(mask.counts, mask_origin)
        if picture.size is not None:
            digests.append(picture.digest)
            positions.append(position)
        for problem in (*mask.problems, *wrong_size(mask, mask_origin, picture)):
            problems.append(problem.found_in(split))
    contents = duplicates.Contents(
        split,
        np.asarray(digests, np.uint64),
        np.asarray(positions, np.int64),
        lambda position: source[position]["origin"],
        lambda position: source[position]["mask"],
    )
    return _Split(contents, pictures, masks), problems


def _tables(splits: Sequence[_Split]) -> Iterator[Table]:
    if not splits:
        return
    yield Table(
        ("split", "images", "smallest", "largest", "ignored pixels", "classes found"),
        [
            (
                split.contents.split,
                f"{split.pictures.readable:,}",
                *split.pictures.sizes(),
                f"{split.masks.ignored_share:.1%}",
                f"{np.count_nonzero(split.masks.pixels)} of {len(split.masks.label_set)}",
            )
            for split in splits
        ],
    )
    label_set: LabelSet = splits[0].masks.label_set
    columns = [s for s in splits if s.masks.label_set.class_names == label_set.class_names]
    header = ["class"]
    for split in columns:
        header += [f"{split.contents.split} pixels", "images"]
    rows = []
    for number, name in enumerate(label_set.class_names):
        row = [name]
        for split in columns:
            share = split.masks.pixels[number] / max(1, split.masks.pixels.sum())
            row += [f"{share:.2%}", f"{split.masks.images[number]:,}"]
        rows.append(row)
    yield Table(header, rows)
