"""Prepares a folder of images and masks as a data set of TensorFlow Datasets."""

import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from replk_jax.io.text import storable
from replk_jax.vision.images import ImageError, image_error
from replk_jax.vision.label_sets import LabelSet
from train.data.folder_sets import (
    folder_info,
    is_prepared,
    require_folder,
    require_name,
    require_split_name,
    stored_name,
)
from train.data.items import Stored
from train.data.masks import decode_pair
from train.data.records import write_dataset
from train.data.segmentation_folders import split_names
from train.data.segmentation_sources import SegmentationFolder
from train.errors import RunError


def prepare_pairs(
    data: Mapping[str, Any],
    name: str,
    data_dir: Path,
    splits: Sequence[str] = (),
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> Path:
    """Prepares the images and masks of a folder.

    Each image is stored as it is, and each mask as a grey PNG whose values are the classes, and 255
    for ignored pixels. The data set has the features `image`, `mask` (a `LabeledImage` with the
    names of the classes) and `file_name`, and can be read with or without TensorFlow.

    Args:
      data: see `train.data.segmentation_folders.find_pairs`.
      name: of the data set: small letters, digits and underscores.
      data_dir: folder of the data sets.
      splits: to prepare; all of the folder (`split_names`) if there are none. "val" is stored as
        "validation", and "training" as "train".
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the data set.

    Raises:
      RunError: there are no such images, images or masks are missing, cannot be read or do not fit
        each other, the name is taken, or the data set cannot be written.
    """
    folder = Path(data["folder"]).expanduser()
    require_name(name)
    require_folder(folder)
    wanted = tuple(splits) or split_names(data)
    for split in wanted:
        require_split_name(folder, split)
    items = {stored_name(split): Pairs(data, split) for split in wanted}
    if len(items) < len(wanted):
        raise RunError(f"Two of the splits {', '.join(wanted)} are the same one.")
    (class_names,) = {pairs.label_set.class_names for pairs in items.values()}
    info = folder_info(
        name,
        data_dir,
        {
            "image": tfds.features.Image(),
            "mask": tfds.features.LabeledImage(
                labels=list(class_names), shape=(None, None, 1), encoding_format="png"
            ),
        },
        ("image", "mask"),
    )
    if not is_prepared(info):
        write_dataset(
            info, items, make_example, processes=processes, keep_unreadable=keep_unreadable
        )
    return Path(info.data_dir)


class PairItem(NamedTuple):
    """An image and its mask, to store.

    Attributes:
      name: unique in the split; UTF-8.
      image, mask: paths of the files.
      label_set: of the mask.
    """

    name: str
    image: str
    mask: str
    label_set: LabelSet

    @property
    def bytes(self) -> int:
        """The number of bytes of both files."""
        return os.path.getsize(self.image) + os.path.getsize(self.mask)

    @property
    def fingerprint(self) -> str:
        """The file of the mask and the classes of its values."""
        return f"{storable(self.mask)} {_digest(self.label_set)}"


class Pairs:
    """The images and masks of a split, as items to store.

    Args:
      data, split: see `train.data.segmentation_folders.find_pairs`.

    Raises:
      RunError: see `SegmentationFolder.open`.
    """

    def __init__(self, data: Mapping[str, Any], split: str):
        self._folder = str(Path(data["folder"]).expanduser())
        self._source = SegmentationFolder.open(data, split)
        self.label_set = self._source.label_set

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> PairItem:
        image, mask = self._source.pair(index)
        return PairItem(
            storable(image), f"{self._folder}/{image}", f"{self._folder}/{mask}", self.label_set
        )


def make_example(item: PairItem) -> Stored:
    """The example of an image and its mask, which are both decoded once.

    Returns:
      `image`, `mask` and `file_name`; files that cannot be read, or do not fit each other, are
      stored as they are.
    """
    example: dict[str, Any] = {"image": b"", "mask": b"", "file_name": item.name}
    try:
        example |= {"image": _read(item.image), "mask": _read(item.mask)}
        _, mask = decode_pair(
            {**example, "origin": item.image, "mask_origin": item.mask}, item.label_set
        )
    except ImageError as error:
        return Stored(example, str(error))
    return Stored({**example, "mask": _as_png(mask)}, None)


def _as_png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise image_error(path, error) from error


@functools.cache
def _digest(label_set: LabelSet) -> str:
    return hashlib.sha256(label_set.class_of_value.tobytes()).hexdigest()
