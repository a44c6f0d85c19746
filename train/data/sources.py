"""Where labelled images come from: TensorFlow Datasets, or folders with one folder a class.

A source is a sequence of {"image": encoded bytes, "label": int, "origin": str} with
`class_names`; the origin says where the image lies, for the error that names it.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from replk_jax.images import IMAGE_SUFFIXES
from train.data.digits import Digits
from train.errors import RunError

# Builders of this project.
_EMBEDDED = {"digits": Digits}


class Source(Protocol):
    """Labelled images by position."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def prepare(data: Mapping[str, Any]) -> None:
    """Writes a data set that this project embeds to disk, if `data` names one not yet there.

    Raises:
      RunError: it cannot be written.
    """
    if data["folder"] or data["name"] not in _EMBEDDED:
        return
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


def open_source(data: Mapping[str, Any], split: str) -> Source:
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
    """Images in `root/split/<class>/`; classes are numbered in the order of their names."""

    def __init__(self, root: Path, split: str):
        folder = root / split
        if not folder.is_dir() and split == "validation":
            folder = root / "val"
        if not folder.is_dir():
            raise RunError(
                f"There is no folder {root / split}. A folder of images must hold "
                f"{split}/<class>/<image>, for example {split}/tabby_cat/001.jpg."
            )
        self.class_names = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        self._examples = [
            (str(path), label)
            for label, name in enumerate(self.class_names)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        empty = set(range(len(self.class_names))) - {label for _, label in self._examples}
        if empty or not self._examples:
            without = [str(folder / self.class_names[label]) for label in sorted(empty)]
            raise RunError(
                f"{', '.join(without) or folder} holds no images: expected "
                f"{folder}/<class>/<image>, with one of the endings "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self._examples[index]
        return {"image": Path(path).read_bytes(), "label": label, "origin": path}


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
                f"Prepare it again as array_record:\n{_how_to_prepare(name, data_dir)}"
            ) from error
        except (ValueError, AssertionError) as error:
            splits = ", ".join(sorted(builder.info.splits))
            raise RunError(
                f"{name} has no split {split!r}; it has {splits}, and parts of them such as "
                f"{sorted(builder.info.splits)[0]}[:10%]. ({error})"
            ) from error
        self._origin = f"{name}, split {split}, example"
        self.class_names = features[self._label].names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        label, origin = int(example[self._label]), f"{self._origin} {index}"
        if not 0 <= label < len(self.class_names):
            raise RunError(f"{origin} has no label; use a split that is labelled.")
        return {"image": example[self._image], "label": label, "origin": origin}


def _prepared_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise RunError(f"TensorFlow Datasets knows no {name!r}.{hint}") from error
    except ImportError as error:
        raise RunError(f"The builder of {name} cannot be made here: {error}.") from error
    if not builder.is_prepared():
        raise RunError(
            f"{name} is not prepared in {builder.data_dir}.\n{_how_to_prepare(name, data_dir)}"
        )
    return builder


def _how_to_prepare(name: str, data_dir: str | None) -> str:
    where = f", data_dir={data_dir!r}" if data_dir else ""
    manual = ""
    if name.startswith("imagenet2012"):
        folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / "downloads/manual"
        manual = (
            f"Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from image-net.org, into\n"
            f"  {folder}\n"
        )
    return (
        f"{manual}Prepare it once, in an environment that has TensorFlow "
        "(pip install tensorflow-cpu; training itself does not need it):\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\"\n"
        "If it lies elsewhere, name the place with --config.data.data_dir=DIR.\n"
        "Or train on a folder of class folders, DIR/train/<class>/<image> and "
        "DIR/val/<class>/<image>, with --config.data.folder=DIR."
    )
