"""The images in the tars of ILSVRC2012, found without unpacking them.

ILSVRC2012_img_train.tar has a tar for each class, named after its WordNet synset.
ILSVRC2012_img_val.tar has ILSVRC2012_val_00000001.JPEG and so on; their classes are listed in
TensorFlow Datasets. Neither is compressed, so an image is a range of bytes of the file.
"""

import dataclasses
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import tensorflow_datasets as tfds
from tqdm import tqdm

from replk_jax.io.text import storable
from train.data.items import Item
from train.data.names import Names
from train.errors import RunError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split())


@dataclasses.dataclass(frozen=True)
class Contents:
    """The expected contents of the tars; those of ILSVRC2012 by default.

    Attributes:
      synsets: of the classes, by label.
      train, validation: numbers of images.
      validation_synsets: of the validation images, in the order of their names.
    """

    synsets: tuple[str, ...] = dataclasses.field(default_factory=lambda: _lines("labels.txt"))
    train: int = 1_281_167
    validation: int = 50_000
    validation_synsets: tuple[str, ...] = dataclasses.field(
        default_factory=lambda: _lines("validation_labels.txt")
    )


class TarImages:
    """Images in a tar, as items to store.

    Args:
      path: of the tar.
      found: (name, label, position of the first byte, number of bytes) of each image.
    """

    def __init__(self, path: Path, found: Iterator[tuple[str, int, int, int]]):
        self._path = str(path)
        self._labels, self._starts, self._sizes = array("i"), array("q"), array("q")

        def names() -> Iterator[str]:
            for name, label, start, size in found:
                self._labels.append(label)
                self._starts.append(start)
                self._sizes.append(size)
                yield name

        self._names = Names(names())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Item:
        return Item(
            name=storable(self._names[index]),
            label=self._labels[index],
            path=self._path,
            start=self._starts[index],
            size=self._sizes[index],
        )


def train_images(folder: Path, contents: Contents) -> TarImages:
    """Finds the training images.

    Raises:
      RunError: the tar does not exist, is damaged, or is incomplete.
    """
    path = folder / TRAIN_TAR
    labels = {synset: label for label, synset in enumerate(contents.synsets)}
    counts = dict.fromkeys(contents.synsets, 0)

    def found() -> Iterator[tuple[str, int, int, int]]:
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            classes = tqdm(_files(tar), path.name, len(labels), unit="class", disable=None)
            for name, member in classes:
                synset = name.removesuffix(".tar")
                if synset not in labels:
                    raise RunError(f"{path} contains {name}, which is no class of ILSVRC2012.")
                with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                    for name, image in _files(inner):
                        counts[synset] += 1
                        start = member.offset_data + image.offset_data
                        yield name, labels[synset], start, image.size

    images = _list_images(path, found())
    missing = [synset for synset, count in counts.items() if not count]
    smallest = Counter(counts).most_common()[:-4:-1]
    _require_count(
        path, len(images), contents.train,
        f"There are no images of {_some(missing)}." if missing else "The smallest classes are "
        f"{', '.join(f'{synset} with {count:,}' for synset, count in smallest)}.",
    )  # fmt: skip
    return images


def validation_images(folder: Path, contents: Contents) -> TarImages:
    """Finds the validation images.

    Raises:
      RunError: see `train_images`.
    """
    path = folder / VALIDATION_TAR
    labels = {synset: label for label, synset in enumerate(contents.synsets)}
    numbers = set()

    def found() -> Iterator[tuple[str, int, int, int]]:
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for name, image in tqdm(_files(tar), path.name, contents.validation, disable=None):
                match = _VALIDATION_NAME.fullmatch(name)
                if not match or not 1 <= int(match[1]) <= contents.validation:
                    raise RunError(f"{path} contains {name}, which is no image of ILSVRC2012.")
                numbers.add(int(match[1]))
                synset = contents.validation_synsets[int(match[1]) - 1]
                yield name, labels[synset], image.offset_data, image.size

    images = _list_images(path, found())
    missing = sorted(set(range(1, contents.validation + 1)) - numbers)
    _require_count(
        path, len(images), contents.validation,
        f"Missing: {_some([f'ILSVRC2012_val_{number:08}.JPEG' for number in missing])}.",
    )  # fmt: skip
    return images


def _list_images(path: Path, found: Iterator[tuple[str, int, int, int]]) -> TarImages:
    try:
        return TarImages(path, found)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RunError(f"{path} is damaged or incomplete ({error}): download it again.") from error


def _opened(path: Path) -> BinaryIO:
    if not path.exists():
        raise RunError(
            f"There is no {path}. {TRAIN_TAR} and {VALIDATION_TAR} can be downloaded from "
            "image-net.org after registration; name their folder with --tars DIR."
        )
    return open(path, "rb")


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar, with their names (without folders)."""
    for member in tar:
        if member.isfile():
            yield PurePosixPath(member.name).name, member


def _require_count(path: Path, count: int, expected: int, hint: str) -> None:
    if count != expected:
        raise RunError(
            f"{path} contains {count:,} images, not {expected:,}. {hint} Download it again."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
