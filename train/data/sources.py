"""Sources of labelled images: TensorFlow Datasets, and folders with a folder for each class."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from replk_jax.io.text import storable
from replk_jax.vision.images import IMAGE_SUFFIXES, describe_left_out, image_error, image_names
from train.data.digits import Digits
from train.data.names import Names
from train.data.photographs import Photographs
from train.data.pipeline import Example, Source
from train.data.scattered_digits import ScatteredDigits
from train.data.tfds_sets import FolderAlternative, PreparedSet, read_example
from train.errors import RunError, expect_utf8
from train.reporting.console import warn

# Builders of this project.
_EMBEDDED = {
    "digits": Digits,
    "photographs": Photographs,
    "scattered_digits": ScatteredDigits,
}

_CLASS_FOLDERS = FolderAlternative(
    "class folders, DIR/train/<class>/<image> and DIR/val/<class>/<image>"
)


class LabelledImages(Source, Protocol):
    """A source of {"image": encoded bytes, "label": int32, "origin": str}.

    Labels are indices in `class_names`. The origin identifies the image in error messages.
    """

    class_names: list[str]


def prepare(data: Mapping[str, Any]) -> None:
    """Writes an embedded data set to disk, if `data` names one and it does not exist yet.

    Args:
      data: the section `data` of configs/common.py.

    Raises:
      RunError: it cannot be written.
    """
    if data["folder"] or data["name"] not in _EMBEDDED:
        return
    expect_utf8(data["data_dir"] or "")
    tfds.disable_progress_bar()  # the preparation takes seconds
    try:
        builder = _EMBEDDED[data["name"]](data_dir=data["data_dir"], file_format="array_record")
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        folder = data["data_dir"] or constants.DATA_DIR
        raise RunError(
            f"{data['name']} could not be prepared in {folder}: {error}. Free some space, or use "
            "another folder with --config.data.data_dir=DIR."
        ) from error


def open_source(data: Mapping[str, Any], split: str) -> LabelledImages:
    """Opens a split of the configured data set.

    Args:
      data: with `folder`, a path or None; and, for TensorFlow Datasets, `name` and `data_dir`.
      split: a TFDS split, such as "train" or "train[:5%]"; for folders, the name of a subfolder.

    Raises:
      RunError: the data set does not exist, or is not for classification.
    """
    if data["folder"]:
        return FolderSource(Path(data["folder"]).expanduser(), split)
    return TfdsSource(data["name"], split, data["data_dir"])


class FolderSource:
    """Images in `root/split/<class>/`; labels are in the order of the class names.

    Images are the files that `vision.images.image_names` finds; a warning gives the number of other
    files. Hidden class folders are skipped. A class folder may be a symbolic link, but links inside
    it are not followed. Class names are the names of the folders, with escapes for what a line of
    UTF-8 cannot contain.

    Only folders are read, not files: 2.5 seconds for a million files, with a warm disk cache. A
    file takes its name and 8 bytes of memory in each process: 0.4 GB for the 14 million files of
    ImageNet-22K, which a worker process receives in half a second.

    Args:
      root: the folder of the splits.
      split: name of the subfolder; "validation" may be "val" on disk.

    Raises:
      RunError: the subfolder does not exist, or a class has no images.
    """

    def __init__(self, root: Path, split: str):
        folder = _split_folder(root, split)
        skipped: Counter[str] = Counter()
        self._folder, self._class_folders = str(folder), _class_folders(folder, skipped)
        self.class_names = [storable(name) for name in self._class_folders]
        counts = []

        def names() -> Iterator[str]:
            for name in self._class_folders:
                found = sorted(image_names(folder / name, left_out=skipped))
                counts.append(len(found))
                yield from found

        self._names = Names(names())
        self._class_ends = np.cumsum(counts, dtype=np.int64)
        if skipped:
            warn(describe_left_out(folder, skipped))
        _require_images(folder, self.class_names, counts)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        path = f"{self._folder}/{self.name(index)}"
        try:
            image = Path(path).read_bytes()
        except OSError as error:
            raise image_error(path, error) from error
        return {"image": image, "label": np.int32(self.label(index)), "origin": path}

    def name(self, index: int) -> str:
        """`<class>/<image>`, the path in the folder of the split."""
        return f"{self._class_folders[self.label(index)]}/{self._names[index]}"

    def label(self, index: int) -> int:
        """The label of an image."""
        return int(np.searchsorted(self._class_ends, index, side="right"))


class _Features(NamedTuple):
    """The features of a classification data set of TensorFlow Datasets.

    Attributes:
      image, label: their names.
      class_names: by label.
      has_file_name: whether examples have the text `file_name`.
    """

    image: str
    label: str
    class_names: list[str]
    has_file_name: bool


class TfdsSource:
    """A classification data set of TensorFlow Datasets, read without TensorFlow.

    Args:
      name: of the data set.
      split: "train" or "train[:5%]", for example.
      data_dir: folder of the data sets; None for the default of TensorFlow Datasets.

    Raises:
      RunError: the data set is not prepared, is not for classification, or has no such split.
    """

    def __init__(self, name: str, split: str, data_dir: str | None):
        prepared = PreparedSet(name, data_dir, _CLASS_FOLDERS)
        self._features = _classification_features(name, prepared.info)
        self._source = prepared.split(split, {self._features.image: tfds.decode.SkipDecoding()})
        self._origin = f"{name}, split {split}, example"
        self.class_names = self._features.class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example, origin = read_example(
            self._source, index, self._origin, self._features.has_file_name
        )
        label = int(example[self._features.label])
        if not 0 <= label < len(self.class_names):
            raise RunError(f"{origin} has no label; use a labelled split.")
        return {"image": example[self._features.image], "label": np.int32(label), "origin": origin}


def _classification_features(name: str, info: tfds.core.DatasetInfo) -> _Features:
    """The features of a classification data set.

    Raises:
      RunError: the data set is not for classification.
    """
    match info.supervised_keys, info.features:
        case (str(image), str(label)), tfds.features.FeaturesDict() as features:
            classes = features[label]
            if isinstance(features[image], tfds.features.Image) and isinstance(
                classes, tfds.features.ClassLabel
            ):
                has_file_name = "file_name" in features and isinstance(
                    features["file_name"], tfds.features.Text
                )
                return _Features(image, label, classes.names, has_file_name)
    raise RunError(f"{name} is not a classification set: its features are {info.features}.")


def _split_folder(root: Path, split: str) -> Path:
    folder = root / split
    if not folder.is_dir() and split == "validation":
        folder = root / "val"
    if not folder.is_dir():
        raise RunError(
            f"There is no folder {root / split}. A folder of images must contain "
            f"{split}/<class>/<image>, for example {split}/tabby_cat/001.jpg."
        )
    return folder


def _class_folders(folder: Path, skipped: Counter[str]) -> list[str]:
    """The sorted names of the class folders; counts image files outside them in `skipped`."""
    names = []
    for entry in folder.iterdir():
        if entry.is_dir():
            if not entry.name.startswith("."):
                names.append(entry.name)
        elif entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
            skipped[f"{entry.suffix.lower()} outside the class folders"] += 1
    return sorted(names)


def _require_images(folder: Path, class_names: list[str], counts: list[int]) -> None:
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty or not counts:
        shown = [str(folder / name) for name in empty[:10]] or [str(folder)]
        more = f" (and {len(empty) - 10} more)" if len(empty) > 10 else ""
        raise RunError(
            f"There are no images in {', '.join(shown)}{more}: expected {folder}/<class>/<image>, "
            f"with one of the suffixes {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
