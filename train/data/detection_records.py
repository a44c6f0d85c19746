"""Prepares a folder of images with annotated objects as a data set of TensorFlow Datasets."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from replk_jax.io.text import storable
from replk_jax.vision.images import ImageError, image_error
from train.data.annotated_images import DetectionSource
from train.data.detection_sources import FileReader, open_detection_source, split_names
from train.data.detection_tfds import ANNOTATION
from train.data.detection_transforms import decode_upright
from train.data.folder_sets import (
    folder_info,
    is_prepared,
    require_folder,
    require_name,
    require_split_name,
    stored_name,
)
from train.data.items import Stored
from train.data.records import write_dataset
from train.errors import RunError


def prepare_objects(
    data: Mapping[str, Any],
    name: str,
    data_dir: Path,
    splits: Sequence[str] = (),
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> Path:
    """Prepares the images of a folder with their objects.

    Each image is stored as it is. The data set has the features `image`, `image/id`, `file_name`
    and `objects`, a sequence of `bbox` (within the image), `label` and `annotation`, which is the
    whole of an annotation in COCO's form, as JSON. It can be read with or without TensorFlow.

    Args:
      data: see `train.data.detection_sources.find_objects`.
      name: of the data set: small letters, digits and underscores.
      data_dir: folder of the data sets.
      splits: to prepare; all of the folder if there are none. "val" is stored as "validation".
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the data set.

    Raises:
      RunError: there are no such images, annotations cannot be used, images cannot be read, the
        name is taken, or the data set cannot be written.
    """
    folder = Path(data["folder"]).expanduser()
    require_name(name)
    require_folder(folder)
    wanted = tuple(splits) or split_names(data)
    for split in wanted:
        require_split_name(folder, split)
    items = {stored_name(split): Objects(open_detection_source(data, split)) for split in wanted}
    if len(items) < len(wanted):
        raise RunError(f"Two of the splits {', '.join(wanted)} are the same one.")
    names = {split.source.class_names for split in items.values()}
    if len(names) > 1:
        raise RunError(
            f"The splits {', '.join(wanted)} of {folder} do not have the same categories in the "
            "same order."
        )
    (class_names,) = names
    info = folder_info(
        name,
        data_dir,
        {
            "image": tfds.features.Image(),
            "image/id": tfds.features.Scalar(np.int64),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=list(class_names)),
                    ANNOTATION: tfds.features.Text(),
                }
            ),
        },
    )
    if not is_prepared(info):
        write_dataset(
            info, items, make_example, processes=processes, keep_unreadable=keep_unreadable
        )
    return Path(info.data_dir)


class ObjectsItem(NamedTuple):
    """An image and its objects, to store.

    Attributes:
      name: unique in the split; UTF-8.
      path: of the image.
      image_id: of the image.
      size: (height, width) of the image.
      labels: of the objects.
      annotations: of the objects, in COCO's form.
    """

    name: str
    path: str
    image_id: int
    size: tuple[int, int]
    labels: list[int]
    annotations: list[dict[str, Any]]

    @property
    def bytes(self) -> int:
        """The number of bytes of the image."""
        return os.path.getsize(self.path)

    @property
    def fingerprint(self) -> str:
        """A hash of the objects."""
        content = json.dumps([self.image_id, self.size, self.labels, self.annotations])
        return hashlib.sha256(content.encode()).hexdigest()


class Objects:
    """The images of a split with their objects, as items to store.

    Args:
      source: the split, of a folder.
    """

    def __init__(self, source: DetectionSource):
        if not isinstance(source.reader, FileReader):
            raise TypeError("Only images in a folder can be prepared.")
        self.source, self._reader = source, source.reader

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ObjectsItem:
        table, reader = self.source.table, self._reader
        objects = table.objects(index)
        first = int(table.ends[index])
        annotations = [
            {
                "id": int(table.ids[first + i]),
                "bbox": objects.boxes[i].tolist(),
                "area": float(objects.areas[i]),
                "iscrowd": int(objects.crowd[i]),
                "ignore": int(objects.ignored[i]),
                "segmentation": reader.segmentation(index, int(objects.numbers[i])),
            }
            for i in range(len(objects.boxes))
        ]
        return ObjectsItem(
            storable(reader.name(index)),
            reader.origin(index),
            int(table.image_ids[index]),
            table.size(index),
            objects.classes.tolist(),
            annotations,
        )


def make_example(item: ObjectsItem) -> Stored:
    """The example of an image, which is decoded once, and of its objects.

    Returns:
      All features; an image that cannot be read, or has another size than its annotations state, is
      stored as it is.
    """
    image, message = b"", None
    try:
        image = Path(item.path).read_bytes()
        decode_upright({"image": image, "origin": item.path, "size": item.size})
    except OSError as error:
        message = str(image_error(item.path, error))
    except ImageError as error:
        message = str(error)
    objects = [
        {
            "bbox": _fractions(annotation["bbox"], item.size),
            "label": label,
            ANNOTATION: json.dumps(annotation),
        }
        for label, annotation in zip(item.labels, item.annotations, strict=True)
    ]
    return Stored(
        {"image": image, "image/id": item.image_id, "objects": objects, "file_name": item.name},
        message,
    )


def _fractions(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The part of a box in the image: top, left, bottom and right, as `BBoxFeature` has them."""
    height, width = size
    x, y, across, down = box
    left, right = np.clip((x, x + max(across, 0)), 0, width) / width
    top, bottom = np.clip((y, y + max(down, 0)), 0, height) / height
    return np.array((top, left, bottom, right), np.float32)
