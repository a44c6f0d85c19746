"""Folders of images and masks: ADE20K, Cityscapes, Pascal VOC, and folders of a user's own."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from replk_jax.io.errors import error_text
from replk_jax.vision import label_sets
from replk_jax.vision.images import IMAGE_SUFFIXES, describe_left_out, image_names
from replk_jax.vision.label_sets import LabelSet
from train.data.class_lists import choose_label_set
from train.errors import RunError
from train.reporting.console import warn

FORMATS = ("folder", "ade20k", "cityscapes", "voc")
IMAGE_FOLDERS = ("images", "img_dir")
MASK_FOLDERS = ("masks", "annotations", "ann_dir", "labels")

_SPLIT_LISTS = ("{}.txt", "splits/{}.txt", "ImageSets/Segmentation/{}.txt")
# Other names of a split on disk.
_ALIASES = {
    "train": ("training",),
    "training": ("train",),
    "validation": ("val",),
    "val": ("validation",),
}

# A path relative to the folder of the data set, by the name that an image and its mask share.
_Files = dict[str, str]


class Pair(NamedTuple):
    """An image and its mask: paths relative to the folder of the data set."""

    image: str
    mask: str


@dataclasses.dataclass(frozen=True)
class PairedFiles:
    """The files of a split.

    Attributes:
      pairs: in the order of the images' paths.
      without_mask: paths of the images without a mask, or names in a list of which there is no
        image, in order.
      without_image: paths of the masks without an image, in order.
      expected: where the mask of an image is expected, in words.
      label_set: of the masks.
    """

    pairs: list[Pair]
    without_mask: list[str]
    without_image: list[str]
    expected: str
    label_set: LabelSet


def find_pairs(data: Mapping[str, Any], split: str) -> PairedFiles:
    """The images and masks of a split; files are listed, but not opened.

    Args:
      data: the section `config.data` of segmentation, with `folder`, `format`, `image_suffix`,
        `mask_suffix`, `classes` and `reduce_zero_label`.
      split: its name. "val" and "validation" are the same, and so are "train" and "training".

    Raises:
      RunError: there is no such split or no class file, or the fields contradict each other.
    """
    root = Path(data["folder"]).expanduser()
    kind = data["format"] or "folder"
    if kind not in FORMATS:
        raise RunError(f"config.data.format is one of {', '.join(FORMATS)}; got {kind!r}.")
    if kind in ("ade20k", "cityscapes") and (data["image_suffix"] or data["mask_suffix"]):
        raise RunError(
            f"The format {kind} has suffixes of its own: leave config.data.image_suffix and "
            'mask_suffix at None, or set config.data.format="folder".'
        )
    if not root.is_dir():
        raise RunError(f"There is no folder {root} (config.data.folder).")
    layout = _LAYOUTS[kind](_Request(root, split, data["image_suffix"], data["mask_suffix"]))
    return _paired(layout, choose_label_set(data, layout.standard))


def require_pairs(files: PairedFiles, folder: Path, split: str) -> None:
    """Raises RunError if there are no pairs, or files without the other of the pair.

    Args:
      files: of the split.
      folder: of the data set.
      split: its name.
    """
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (
            ("images have no mask", files.without_mask),
            ("masks have no image", files.without_image),
        )
        if names
    ]
    if problems:
        raise RunError(
            f"The split {split} of {folder} is incomplete. {' '.join(f'{p}.' for p in problems)} "
            f"{files.expected}"
        )
    if not files.pairs:
        raise RunError(f"The split {split} of {folder} has no images. {files.expected}")


class _Request(NamedTuple):
    """What is asked for: a split of the data set in `root`. A suffix of None is the usual one."""

    root: Path
    split: str
    image_suffix: str | None
    mask_suffix: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the split may have on disk."""
        return (self.split, *_ALIASES.get(self.split, ()))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The files of a split before they are paired.

    Attributes:
      images, masks: by the name that an image and its mask share.
      names: those in the list of the split; None where the split is all files.
      expected: see `PairedFiles`.
      standard: see `choose_label_set`.
    """

    images: _Files
    masks: _Files
    names: list[str] | None
    expected: str
    standard: LabelSet | None


def _paired(layout: _Layout, label_set: LabelSet) -> PairedFiles:
    images, masks = layout.images, layout.masks
    names = set(images if layout.names is None else layout.names)
    pairs = sorted(Pair(images[n], masks[n]) for n in names if n in images and n in masks)
    without_mask = sorted(images.get(n, n) for n in names if n not in images or n not in masks)
    without_image = []
    if layout.names is None:
        without_image = sorted(masks[name] for name in masks.keys() - images.keys())
    return PairedFiles(pairs, without_mask, without_image, layout.expected, label_set)


def _ade20k(request: _Request) -> _Layout:
    name = _existing(
        request, "images/{}", 'the folder "ADEChallengeData2016" of the scene parsing benchmark'
    )
    return _Layout(
        _files(request.root, f"images/{name}", ".jpg"),
        _files(request.root, f"annotations/{name}", ".png"),
        None,
        f"The mask of images/{name}/NAME.jpg is annotations/{name}/NAME.png.",
        label_sets.find("ade20k"),
    )


def _cityscapes(request: _Request) -> _Layout:
    name = _existing(
        request, "leftImg8bit/{}", "the folder with leftImg8bit and gtFine of Cityscapes"
    )
    root = request.root
    images = _files(root, f"leftImg8bit/{name}", "_leftImg8bit.png")
    # Train ids are used only where all images have them, so that one rule holds for all masks.
    masks = _files(root, f"gtFine/{name}", "_gtFine_labelTrainIds.png")
    by_label_id = label_sets.find("cityscapes")
    standard = LabelSet.of(by_label_id.class_names, by_label_id.palette, name="cityscapes")
    if images.keys() - masks.keys():
        masks = _files(root, f"gtFine/{name}", "_gtFine_labelIds.png")
        standard = by_label_id
    expected = (
        f"The mask of leftImg8bit/{name}/CITY/NAME_leftImg8bit.png is "
        f"gtFine/{name}/CITY/NAME_gtFine_labelIds.png, or NAME_gtFine_labelTrainIds.png if all "
        "images have one."
    )
    return _Layout(images, masks, None, expected, standard)


def _voc(request: _Request) -> _Layout:
    root, lists = request.root, "ImageSets/Segmentation"
    if request.split == "trainaug" and not (root / lists / "trainaug.txt").is_file():
        names = [*_names_in(root / lists / "train.txt"), *_names_in(root / lists / "aug.txt")]
    else:
        name = _existing(
            request,
            f"{lists}/{{}}.txt",
            "a folder with JPEGImages, SegmentationClass and ImageSets",
        )
        names = _names_in(root / lists / f"{name}.txt")
    # VOC's own annotations take precedence over those of the extra set (SBD), as in mmsegmentation.
    suffix = request.mask_suffix or ".png"
    masks: _Files = {}
    for folder in ("SegmentationClassAug", "SegmentationClass"):
        if (root / folder).is_dir():
            masks |= _files(root, folder, suffix)
    return _Layout(
        _files(root, "JPEGImages", request.image_suffix),
        masks,
        names,
        f"The mask of JPEGImages/NAME.jpg is SegmentationClass/NAME{suffix}, or "
        f"SegmentationClassAug/NAME{suffix}.",
        label_sets.find("voc2012"),
    )


def _folder(request: _Request) -> _Layout:
    root = request.root
    suffix = request.mask_suffix or ".png"
    names = None
    for name in request.names:
        folders = _two_folders(root, "{}/" + name) or _two_folders(root, name + "/{}")
        if folders is None and (file := _split_list(root, name)):
            folders = _two_folders(root, "{}")
            names = _names_in(file)
        if folders is not None:
            break
    else:
        raise _no_split(request)
    image_folder, mask_folder = folders
    return _Layout(
        _files(root, image_folder, request.image_suffix),
        _files(root, mask_folder, suffix),
        names,
        f"The mask of {image_folder}/NAME{request.image_suffix or '.jpg'} is "
        f"{mask_folder}/NAME{suffix}; config.data.image_suffix and mask_suffix set other endings.",
        None,
    )


_LAYOUTS: dict[str, Callable[[_Request], _Layout]] = {
    "folder": _folder,
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "voc": _voc,
}


def _two_folders(root: Path, pattern: str) -> tuple[str, str] | None:
    """The folders of images and masks, relative to the root; None unless both exist."""
    images, masks = (
        next((path for path in map(pattern.format, names) if (root / path).is_dir()), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None


def _split_list(root: Path, name: str) -> Path | None:
    files = (root / pattern.format(name) for pattern in _SPLIT_LISTS)
    return next((file for file in files if file.is_file()), None)


def _existing(request: _Request, pattern: str, what: str) -> str:
    """The name that a split has on disk."""
    for name in request.names:
        if (request.root / pattern.format(name)).exists():
            return name
    raise RunError(
        f"There is no {request.root / pattern.format(request.split)}: config.data.folder must be "
        f"{what}."
    )


def _no_split(request: _Request) -> RunError:
    split = request.split
    return RunError(
        f"{request.root} has no split {split}. A folder of images and masks has one of the layouts"
        f"\n  images/{split}/NAME.jpg and masks/{split}/NAME.png"
        f"\n  {split}/images/NAME.jpg and {split}/masks/NAME.png"
        f"\n  images/NAME.jpg, masks/NAME.png and {split}.txt with a NAME in each line.\n"
        f"The folder of the images may also be called {IMAGE_FOLDERS[1]}; that of the masks "
        f"{', '.join(MASK_FOLDERS[1:])}; and {split}.txt may be in splits or "
        "ImageSets/Segmentation."
    )


def _files(root: Path, folder: str, suffix: str | None) -> _Files:
    """The image files in a folder and the folders in it, by their names without the suffix.

    Args:
      root: of the data set.
      folder: relative to the root.
      suffix: of the files that are wanted, in upper or lower case; None for all images.

    Raises:
      RunError: the folder does not exist, or two files have one name.
    """
    found: _Files = {}
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


def _names_in(file: Path) -> list[str]:
    """The names in the list of a split, without the ending of an image file."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"The list {file} cannot be read: {error_text(error)}") from error
    return [_without_ending(line.strip()) for line in lines if line.strip()]


def _without_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGE_SUFFIXES else name


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
