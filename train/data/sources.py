"""Where labelled images come from: TensorFlow Datasets, or folders with one folder a class."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from replk_jax.io.text import storable
from replk_jax.vision.images import IMAGE_SUFFIXES, describe_left_out, image_error, image_names
from train.data.digits import Digits
from train.data.names import Names
from train.data.photographs import Photographs
from train.data.pipeline import Example, Source
from train.errors import RunError, expect_utf8
from train.reporting.console import warn

# Builders of this project.
_EMBEDDED = {"digits": Digits, "photographs": Photographs}


class LabelledImages(Source, Protocol):
    """A source of {"image": encoded bytes, "label": int32, "origin": str}.

    Labels are positions in `class_names`; the origin says where the image lies, for the error that
    names it.
    """

    class_names: list[str]


def prepare(data: Mapping[str, Any]) -> None:
    """Writes a data set that this project embeds to disk, if `data` names one not yet there.

    Raises:
      RunError: it cannot be written.
    """
    if data["folder"] or data["name"] not in _EMBEDDED:
        return
    expect_utf8(data["data_dir"] or "")
    tfds.disable_progress_bar()  # it takes a second
    try:
        builder = _EMBEDDED[data["name"]](data_dir=data["data_dir"], file_format="array_record")
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        folder = data["data_dir"] or tfds.core.constants.DATA_DIR
        raise RunError(
            f"{data['name']} could not be prepared in {folder}: {error}. Make room, or name "
            "another place with --config.data.data_dir=DIR."
        ) from error


def open_source(data: Mapping[str, Any], split: str) -> LabelledImages:
    """Opens a split of what the `data` part of a configuration names.

    Args:
      data: with `folder`, a path or None; and, for TensorFlow Datasets, `name` and `data_dir`.
      split: a TFDS split, such as "train" or "train[:5%]"; for folders the subfolder's name.

    Raises:
      RunError: the data are not there, or are no classification set.
    """
    if data["folder"]:
        return FolderSource(Path(data["folder"]).expanduser(), split)
    return TfdsSource(data["name"], split, data["data_dir"])


class FolderSource:
    """Images in `root/split/<class>/`; classes are numbered in the order of their names.

    Images are the files that `vision.images.image_names` finds, and one warning says how
    many others there are. Hidden class folders are left out. A class folder may be a link, folders
    in it may not. Names of classes are the names of their folders, with escapes for what a line of
    UTF-8 text cannot hold.

    Folders are listed, files are not touched: 2.5 seconds for a million files that the system
    remembers. A file takes its name and 8 bytes of memory in each process, so the 14 million of
    ImageNet-22K 0.4 GB, which a worker process receives in half a second.
    """

    def __init__(self, root: Path, split: str):
        folder = _split_folder(root, split)
        left_out = Counter()
        self._folder, self._class_folders = str(folder), _class_folders(folder, left_out)
        self.class_names = [storable(name) for name in self._class_folders]
        counts = []

        def names() -> Iterator[str]:
            for name in self._class_folders:
                found = sorted(image_names(folder / name, left_out=left_out))
                counts.append(len(found))
                yield from found

        self._names = Names(names())
        self._class_ends = np.cumsum(counts, dtype=np.int64)
        if left_out:
            warn(describe_left_out(folder, left_out))
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
        """`<class>/<image>`, the path below the folder of the split."""
        return f"{self._class_folders[self.label(index)]}/{self._names[index]}"

    def label(self, index: int) -> int:
        """The number of its class."""
        return int(np.searchsorted(self._class_ends, index, side="right"))


class TfdsSource:
    """A classification set of TensorFlow Datasets, read without TensorFlow."""

    def __init__(self, name: str, split: str, data_dir: str | None):
        builder = _prepared_builder(name, data_dir)
        keys = builder.info.supervised_keys
        features = builder.info.features
        if (
            not keys
            or not isinstance(features[keys[0]], tfds.features.Image)
            or not isinstance(features[keys[1]], tfds.features.ClassLabel)
        ):
            raise RunError(f"{name} is not a classification set: its features are {features}.")
        self._image, self._label = keys
        try:
            self._source = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise RunError(
                f"{name} in {builder.data_dir} is stored in a format without random access. "
                f"Remove it, and prepare it again.\n{_how_to_prepare(name, data_dir)}"
            ) from error
        except (ValueError, AssertionError) as error:
            splits = ", ".join(sorted(builder.info.splits))
            raise RunError(
                f"{name} has no split {split!r}; it has {splits}, and parts of them such as "
                f"{sorted(builder.info.splits)[0]}[:10%]. ({error})"
            ) from error
        self._named = isinstance(dict(features).get("file_name"), tfds.features.Text)
        self._origin = f"{name}, split {split}, example"
        self.class_names = features[self._label].names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        origin = f"{self._origin} {index}"
        try:
            example = self._source[index]
        except (RuntimeError, OSError) as error:  # array_record checks what it reads
            raise image_error(origin, error) from error
        if self._named:
            origin += f" ({example['file_name'].decode()})"
        label = int(example[self._label])
        if not 0 <= label < len(self.class_names):
            raise RunError(f"{origin} has no label; use a split that is labelled.")
        return {"image": example[self._image], "label": np.int32(label), "origin": origin}


def _split_folder(root: Path, split: str) -> Path:
    folder = root / split
    if not folder.is_dir() and split == "validation":
        folder = root / "val"
    if not folder.is_dir():
        raise RunError(
            f"There is no folder {root / split}. A folder of images must hold "
            f"{split}/<class>/<image>, for example {split}/tabby_cat/001.jpg."
        )
    return folder


def _class_folders(folder: Path, left_out: Counter[str]) -> list[str]:
    """Names of the class folders in order; counts the files beside them."""
    names = []
    for entry in folder.iterdir():
        if entry.is_dir():
            if not entry.name.startswith("."):
                names.append(entry.name)
        elif entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
            left_out[f"{entry.suffix.lower()} outside the class folders"] += 1
    return sorted(names)


def _require_images(folder: Path, class_names: list[str], counts: list[int]) -> None:
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty or not counts:
        shown = [str(folder / name) for name in empty[:10]] or [str(folder)]
        more = f" (and {len(empty) - 10} more)" if len(empty) > 10 else ""
        raise RunError(
            f"{', '.join(shown)}{more} holds no images: expected {folder}/<class>/<image>, with "
            f"one of the endings {', '.join(sorted(IMAGE_SUFFIXES))}."
        )


def _prepared_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    expect_utf8(data_dir or "")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        place = data_dir or tfds.core.constants.DATA_DIR
        raise RunError(
            f"TensorFlow Datasets knows no {name!r}, and none is prepared in {place}.{hint}"
        ) from error
    except ImportError as error:
        raise RunError(f"The builder of {name} cannot be made here: {error}.") from error
    if not builder.is_prepared():
        raise RunError(
            f"{name} is not prepared in {builder.data_dir}.\n{_how_to_prepare(name, data_dir)}"
        )
    return builder


def _how_to_prepare(name: str, data_dir: str | None) -> str:
    where = data_dir or tfds.core.constants.DATA_DIR
    if name == "imagenet2012":
        command = (
            "Prepare it once, from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of "
            f"image-net.org:\n  python -m train.prepare imagenet2012 --tars DIR --data_dir {where}"
        )
    else:
        place = f", data_dir={data_dir!r}" if data_dir else ""
        command = (
            "Prepare it once, in an environment that has TensorFlow "
            "(pip install tensorflow-cpu; training itself does not need it):\n"
            '  python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}{place}, file_format='array_record').download_and_prepare()\""
        )
    return (
        f"{command}\n"
        "If it lies elsewhere, name the place with --config.data.data_dir=DIR.\n"
        "Or train on a folder of class folders, DIR/train/<class>/<image> and "
        "DIR/val/<class>/<image>, with --config.data.folder=DIR; very many files are better "
        f"prepared too:\n  python -m train.prepare DIR --name NAME --data_dir {where}"
    )
