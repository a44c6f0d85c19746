"""Files of images and masks: listed, and paired by their names."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from replk_jax.io.errors import error_text
from replk_jax.vision.images import IMAGE_SUFFIXES, describe_left_out, image_names
from replk_jax.vision.label_sets import LabelSet
from train.errors import RunError
from train.reporting.console import warn

_SHOWN = 5  # paths in a message

# A path relative to the folder of the data set, by the name that an image and its mask share.
Files = dict[str, str]


class Pair(NamedTuple):
    """An image and its mask: paths relative to the folder of the data set."""

    image: str
    mask: str


@dataclasses.dataclass(frozen=True)
class PairedFiles:
    """The files of a split.

    Attributes:
      pairs: in the order of the images' paths.
      without_mask: paths of the images without a mask, in order.
      missing: names in the list of the split of which there is no image, in order.
      without_image: paths of the masks without an image, in order; none if the split has a list.
      expected: where the mask of an image is expected, in words.
      label_set: of the masks.
    """

    pairs: list[Pair]
    without_mask: list[str]
    missing: list[str]
    without_image: list[str]
    expected: str
    label_set: LabelSet


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a split before they are paired.

    Attributes:
      images, masks: by the name that an image and its mask share.
      names: those in the list of the split; None where the split is all files.
      expected: see `PairedFiles`.
      standard: see `choose_label_set`.
    """

    images: Files
    masks: Files
    names: list[str] | None
    expected: str
    standard: LabelSet | None


def pair_files(layout: Layout, label_set: LabelSet) -> PairedFiles:
    """Pairs the files of a split by their names."""
    images, masks = layout.images, layout.masks
    names = set(images if layout.names is None else layout.names)
    with_image = names & images.keys()
    return PairedFiles(
        pairs=sorted(Pair(images[name], masks[name]) for name in with_image & masks.keys()),
        without_mask=sorted(images[name] for name in with_image - masks.keys()),
        missing=sorted(names - images.keys()),
        without_image=sorted(masks[name] for name in masks.keys() - images.keys())
        if layout.names is None
        else [],
        expected=layout.expected,
        label_set=label_set,
    )


def require_pairs(files: PairedFiles, folder: Path, split: str) -> None:
    """Raises RunError if there are no pairs, or files without the other of the pair.

    Args:
      files: of the split.
      folder: of the data set.
      split: its name.
    """
    problems = [
        f"{kind}: {len(names)} ({_some(names)})."
        for kind, names in (
            ("Images without a mask", files.without_mask),
            ("Names in its list without an image", files.missing),
            ("Masks without an image", files.without_image),
        )
        if names
    ]
    if problems:
        raise RunError(
            f"The split {split} of {folder} is incomplete. {' '.join(problems)} {files.expected}"
        )
    if not files.pairs:
        raise RunError(f"The split {split} of {folder} has no images. {files.expected}")


def list_files(root: Path, folder: str, suffix: str | None) -> Files:
    """The image files in a folder and the folders in it, by their names without the suffix.

    Args:
      root: of the data set.
      folder: relative to the root.
      suffix: of the files that are wanted, in upper or lower case; None for all images.

    Raises:
      RunError: the folder does not exist, or two files have one name.
    """
    found: Files = {}
    left_out: Counter[str] = Counter()
    try:
        names = list(image_names(root / folder, left_out=left_out))
    except OSError as error:
        raise RunError(f"{root / folder} cannot be read: {error_text(error)}") from error
    for name in names:
        if suffix is None:
            key = os.path.splitext(name)[0]
        elif name.lower().endswith(suffix.lower()):
            key = name[: -len(suffix)]
        else:
            continue
        if key in found:
            raise RunError(
                f"{root / folder} has two images of one name, {found[key]} and {folder}/{name}: "
                "move one of them elsewhere, or set config.data.image_suffix."
            )
        found[key] = f"{folder}/{name}"
    if suffix is None and left_out:
        warn(describe_left_out(root / folder, left_out))
    return found


def names_in(file: Path) -> list[str]:
    """The names in the list of a split, without the ending of an image file."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"The list {file} cannot be read: {error_text(error)}") from error
    return [_without_ending(line.strip()) for line in lines if line.strip()]


def _without_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGE_SUFFIXES else name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
