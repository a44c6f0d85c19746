"""Folders of images and masks: ADE20K, Cityscapes, Pascal VOC, and folders of a user's own."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from replk_jax.vision import label_sets
from replk_jax.vision.images import IMAGE_SUFFIXES
from replk_jax.vision.label_sets import LabelSet
from train.data.class_lists import choose_label_set
from train.data.paired_files import Files, Layout, PairedFiles, list_files, names_in, pair_files
from train.errors import RunError

FORMATS = ("folder", "ade20k", "cityscapes", "voc")
IMAGE_FOLDERS = ("images", "img_dir")
MASK_SUFFIXES = (".png", ".tif", ".tiff")
MASK_FOLDERS = ("masks", "annotations", "ann_dir", "labels")

_LIST_FOLDERS = ("splits", "ImageSets/Segmentation")  # beside the folder of the data set itself
# Other names of a split on disk.
_ALIASES = {
    "train": ("training",),
    "training": ("train",),
    "validation": ("val",),
    "val": ("validation",),
}


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
    _require_endings("image_suffix", data["image_suffix"], IMAGE_SUFFIXES)
    _require_endings("mask_suffix", data["mask_suffix"], MASK_SUFFIXES)
    if not root.is_dir():
        raise RunError(f"There is no folder {root} (config.data.folder).")
    suffixes = data["image_suffix"] or None, data["mask_suffix"] or None
    layout = _LAYOUTS[kind](_Request(root, split, *suffixes))
    return pair_files(layout, choose_label_set(data, layout.standard))


def split_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits of a folder that have masks.

    For ADE20K and Cityscapes, training and validation; for Pascal VOC, also `trainaug` where there
    are lists of the extra set; for other folders all, sorted.

    Args:
      data: see `find_pairs`.

    Raises:
      RunError: the folder has no splits.
    """
    root, kind = Path(data["folder"]).expanduser(), data["format"] or "folder"
    if kind != "folder":
        names = _STANDARD_SPLITS[kind]
        extra = (
            root / "ImageSets/Segmentation/aug.txt",
            root / "ImageSets/Segmentation/trainaug.txt",
        )
        if kind == "voc" and any(file.is_file() for file in extra):
            return (*names, "trainaug")
        return names
    names = {
        *(path.name for images in IMAGE_FOLDERS for path in _subfolders(root / images)),
        *(path.name for path in _subfolders(root)),
        *(path.stem for folder in _LIST_FOLDERS for path in (root / folder).glob("*.txt")),
        *_ALIASES,
        "test",
    }
    found = tuple(sorted(name for name in names if _find_folders(root, name)))
    if not found:
        raise _no_split(root, "train")
    return found


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


def _ade20k(request: _Request) -> Layout:
    name = _existing(
        request, "images/{}", 'the folder "ADEChallengeData2016" of the scene parsing benchmark'
    )
    return Layout(
        list_files(request.root, f"images/{name}", ".jpg"),
        list_files(request.root, f"annotations/{name}", ".png"),
        None,
        f"The mask of images/{name}/NAME.jpg is annotations/{name}/NAME.png.",
        label_sets.find("ade20k"),
    )


def _cityscapes(request: _Request) -> Layout:
    name = _existing(
        request, "leftImg8bit/{}", "the folder with leftImg8bit and gtFine of Cityscapes"
    )
    root = request.root
    images = list_files(root, f"leftImg8bit/{name}", "_leftImg8bit.png")
    # Train ids are used only where all images have them, so that one rule holds for all masks.
    masks = list_files(root, f"gtFine/{name}", "_gtFine_labelTrainIds.png")
    by_label_id = label_sets.find("cityscapes")
    standard = LabelSet.of(by_label_id.class_names, by_label_id.palette, name="cityscapes")
    if images.keys() - masks.keys():
        masks = list_files(root, f"gtFine/{name}", "_gtFine_labelIds.png")
        standard = by_label_id
    expected = (
        f"The mask of leftImg8bit/{name}/CITY/NAME_leftImg8bit.png is "
        f"gtFine/{name}/CITY/NAME_gtFine_labelIds.png, or NAME_gtFine_labelTrainIds.png if all "
        "images have one."
    )
    return Layout(images, masks, None, expected, standard)


def _voc(request: _Request) -> Layout:
    root, lists = request.root, "ImageSets/Segmentation"
    if request.split == "trainaug" and not (root / lists / "trainaug.txt").is_file():
        names = [*names_in(root / lists / "train.txt"), *names_in(root / lists / "aug.txt")]
    else:
        name = _existing(
            request,
            f"{lists}/{{}}.txt",
            "a folder with JPEGImages, SegmentationClass and ImageSets",
        )
        names = names_in(root / lists / f"{name}.txt")
    # VOC's own annotations take precedence over those of the extra set (SBD), as in mmsegmentation.
    suffix = request.mask_suffix or ".png"
    masks: Files = {}
    for folder in ("SegmentationClassAug", "SegmentationClass"):
        if (root / folder).is_dir():
            masks |= list_files(root, folder, suffix)
    return Layout(
        list_files(root, "JPEGImages", request.image_suffix),
        masks,
        names,
        f"The mask of JPEGImages/NAME.jpg is SegmentationClass/NAME{suffix}, or "
        f"SegmentationClassAug/NAME{suffix}.",
        label_sets.find("voc2012"),
    )


def _folder(request: _Request) -> Layout:
    root = request.root
    suffix = request.mask_suffix or ".png"
    for name in request.names:
        if found := _find_folders(root, name):
            break
    else:
        raise _no_split(root, request.split)
    image_folder, mask_folder, split_list = found
    names = names_in(split_list) if split_list else None
    return Layout(
        list_files(root, image_folder, request.image_suffix),
        list_files(root, mask_folder, suffix),
        names,
        f"The mask of {image_folder}/NAME{request.image_suffix or '.jpg'} is "
        f"{mask_folder}/NAME{suffix}; config.data.image_suffix and mask_suffix set other endings.",
        None,
    )


_LAYOUTS: dict[str, Callable[[_Request], Layout]] = {
    "folder": _folder,
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "voc": _voc,
}


def _require_endings(field: str, suffix: str | None, endings: Collection[str]) -> None:
    """Raises RunError for a suffix that does not end like a file that can be read."""
    if suffix and not suffix.lower().endswith(tuple(endings)):
        raise RunError(
            f"config.data.{field} must end with one of {', '.join(sorted(endings))}; got "
            f"{suffix!r}."
        )


# The splits that `split_names` gives.
_STANDARD_SPLITS = {
    "ade20k": ("training", "validation"),
    "cityscapes": ("train", "val"),
    "voc": ("train", "val"),
}


class _Folders(NamedTuple):
    """The folders of images and masks of a split, relative to the root; and its list, if any."""

    images: str
    masks: str
    split_list: Path | None


def _find_folders(root: Path, name: str) -> _Folders | None:
    """The folders of a split in any of the layouts of a user's folder; None if there are none."""
    if folders := _two_folders(root, after=f"/{name}") or _two_folders(root, before=f"{name}/"):
        return _Folders(*folders, None)
    if (file := _split_list(root, name)) and (folders := _two_folders(root)):
        return _Folders(*folders, file)
    return None


def _subfolders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_dir())


def _two_folders(root: Path, before: str = "", after: str = "") -> tuple[str, str] | None:
    """The folders of images and masks, relative to the root; None unless both exist.

    Args:
      root: of the data set.
      before, after: what is in front of, and behind, the usual names of these folders.
    """
    images, masks = (
        next((path for name in names if (root / (path := f"{before}{name}{after}")).is_dir()), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None


def _split_list(root: Path, name: str) -> Path | None:
    files = (root / folder / f"{name}.txt" for folder in ("", *_LIST_FOLDERS))
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


def _no_split(root: Path, split: str) -> RunError:
    return RunError(
        f"{root} has no split {split}. A folder of images and masks has one of the layouts"
        f"\n  images/{split}/NAME.jpg and masks/{split}/NAME.png"
        f"\n  {split}/images/NAME.jpg and {split}/masks/NAME.png"
        f"\n  images/NAME.jpg, masks/NAME.png and {split}.txt with a NAME in each line.\n"
        f"The folder of the images may also be called {IMAGE_FOLDERS[1]}; that of the masks "
        f"{', '.join(MASK_FOLDERS[1:])}; and {split}.txt may be in splits or "
        "ImageSets/Segmentation."
    )
