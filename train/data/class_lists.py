"""The classes of a segmentation data set: those of its format, or of a user's list."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replk_jax.io.errors import error_text
from replk_jax.vision.label_sets import LabelSet
from train.errors import RunError

CLASSES_FILE = "classes.txt"


def choose_label_set(data: Mapping[str, Any], standard: LabelSet | None) -> LabelSet:
    """The label set of the configured data set.

    That is the standard one, or that of a list of classes: the file `data["classes"]`, which takes
    precedence, or `classes.txt` in the folder of a data set without a standard.

    Args:
      data: with `folder`, `classes` (a path or None) and `reduce_zero_label` (None for that of the
        standard, or False).
      standard: the label set of the format of the data set, if it has one.

    Raises:
      RunError: there is no list or no valid one, or it contradicts the format.
    """
    file, reduce = data["classes"], data["reduce_zero_label"]
    if standard is not None and standard.name == "cityscapes" and (file or reduce):
        raise RunError(
            "The classes of Cityscapes are fixed: leave config.data.classes and "
            "config.data.reduce_zero_label at None."
        )
    if file or standard is None:
        return read_classes(Path(file or _default_file(data)).expanduser(), bool(reduce))
    if reduce is None or standard.name == "cityscapes":
        return standard
    return LabelSet.of(standard.class_names, standard.palette, reduce, standard.name)


def read_classes(file: Path, reduce_zero_label: bool) -> LabelSet:
    """The label set of a file with the name of a class in each line, in the order of the values.

    Args:
      file: see `read_names`.
      reduce_zero_label: see `LabelSet.of`.

    Raises:
      RunError: the file cannot be read, or is no valid list of classes.
    """
    try:
        return LabelSet.of(read_names(file), reduce_zero_label=reduce_zero_label)
    except ValueError as error:
        raise RunError(f"The list of classes {file}: {error}") from error


def read_names(file: Path) -> tuple[str, ...]:
    """The names of classes in a file, one per line.

    Args:
      file: UTF-8; empty lines do not count.

    Raises:
      RunError: the file cannot be read.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(
            f"The list of classes {file} cannot be read: {error_text(error)}. It has the name of a "
            "class in each line."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _default_file(data: Mapping[str, Any]) -> Path:
    path = Path(data["folder"] or ".").expanduser() / CLASSES_FILE
    if data["folder"] and path.is_file():
        return path
    write = f"write {path}, or " if data["folder"] else ""
    raise RunError(
        f"The names of the classes are not known: {write}set config.data.classes to a file with a "
        "name in each line, in the order of the values in the masks. If 0 in the masks is no class "
        "and the first class is 1, also set config.data.reduce_zero_label=True."
    )
