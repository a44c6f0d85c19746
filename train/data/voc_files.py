"""Pascal VOC's annotation files: an XML file for each image, and lists of the names of images."""

import math
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from replk_jax.io.errors import error_text
from train.data.names import Names
from train.data.object_tables import ObjectTable, TableBuilder
from train.data.paired_files import names_in
from train.errors import RunError

VOC_LISTS = "ImageSets/Main"  # in the folder


class VocFiles(NamedTuple):
    """The contents of the XML files of a split.

    Attributes:
      table: the images in the order of the list, and their objects.
      file_names: of the images, relative to the folder.
    """

    table: ObjectTable
    file_names: Names


def read_voc(folder: Path, split: str, class_names: Sequence[str]) -> VocFiles:
    """Reads the XML files of the images in `ImageSets/Main/SPLIT.txt`.

    Coordinates of Pascal VOC are whole numbers from 1, and the last column and row belong to the
    object: a box starts at `xmin - 1` and is `xmax - xmin + 1` wide. mmdetection subtracts 1 from
    all four, so its boxes are one pixel less wide and high.

    Objects that are marked as difficult are ignored in training, and count as crowds in an
    evaluation: they are neither missed nor found.

    Args:
      folder: with `Annotations`, `ImageSets/Main` and `JPEGImages`.
      split: "train", "val", "trainval" or "test", for example.
      class_names: of the objects.

    Raises:
      RunError: there is no such split, or an XML file cannot be read or has an unknown class.
    """
    lists = folder / VOC_LISTS
    if not (lists / f"{split}.txt").is_file():
        found = ", ".join(voc_splits(folder))
        raise RunError(
            f"There is no list {lists / split}.txt. "
            + (f"The splits are {found}." if found else "A folder of Pascal VOC has one per split.")
        )
    builder, file_names = TableBuilder(), []
    class_of = {name: i for i, name in enumerate(class_names)}
    for name in names_in(lists / f"{split}.txt"):
        file_names.append(_add_image(builder, folder, name, class_of))
    if not file_names:
        raise RunError(f"The list {lists / split}.txt is empty.")
    return VocFiles(builder.table(), Names(file_names))


def voc_splits(folder: Path) -> list[str]:
    """The names of the lists, without those of a single class, such as `cat_train`."""
    return sorted(path.stem for path in (folder / VOC_LISTS).glob("*.txt") if "_" not in path.stem)


def _add_image(builder: TableBuilder, folder: Path, name: str, class_of: dict[str, int]) -> str:
    """Adds an image and its objects; returns the path of the image in the folder."""
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = xml.etree.ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise RunError(f"The annotations {path} cannot be read: {error_text(error)}") from error
    except (xml.etree.ElementTree.ParseError, ValueError) as error:
        raise RunError(f"{path} is no XML, or not the whole of it: {error}.") from error
    height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
    if min(height, width) < 1:
        raise RunError(f"{path} states a size of {width:g} x {height:g} pixels: correct it.")
    builder.add_image(name, int(height), int(width))
    for item in root.iter("object"):
        class_name = (item.findtext("name") or "").strip()
        if class_name not in class_of:
            raise RunError(
                f"{path} has an object of the unknown class {class_name!r}; the classes are "
                f"{', '.join(class_of)}. Set config.data.classes to a file with the names of all "
                "classes, one per line."
            )
        left, top, right, bottom = (
            _number(item, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        builder.add_object(
            (left - 1, top - 1, right - left + 1, bottom - top + 1),
            class_of[class_name],
            crowd=difficult,
        )
    return f"JPEGImages/{_file_name(root, name)}"


def _number(item: xml.etree.ElementTree.Element, key: str, path: Path) -> float:
    text = item.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RunError(f"{path}: {item.tag}/{key} is no number, but {text!r}: correct it.")
    return value


def _file_name(root: xml.etree.ElementTree.Element, name: str) -> str:
    """The name of the image: that of the XML file, with the ending that `filename` has."""
    stated = (root.findtext("filename") or "").strip()
    return f"{name}{Path(stated).suffix or '.jpg'}"
