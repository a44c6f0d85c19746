"""Opens splits of detection data sets: JSON and XML files, and TensorFlow Datasets."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from replk_jax.vision import label_sets
from replk_jax.vision.images import image_error
from train.data.annotated_images import DetectionSource, StoredImage
from train.data.class_lists import CLASSES_FILE, read_names
from train.data.coco_files import read_coco
from train.data.detection_tfds import read_records
from train.data.instance_masks import CocoSegmentations
from train.data.names import Names
from train.data.voc_files import read_voc
from train.errors import RunError
from train.reporting.console import warn

FORMATS = ("coco", "voc")


def open_detection_source(data: Mapping[str, Any], split: str) -> DetectionSource:
    """Opens a split of the configured data set, whose annotations must be valid.

    Args:
      data: see `find_objects`.
      split: see `find_objects`.

    Raises:
      RunError: see `find_objects`; or an annotation cannot be used.
    """
    source = find_objects(data, split)
    errors = [problem for problem in source.problems if problem.severity == "error"]
    if errors:
        more = f" There are {len(errors) - 1:,} more problems." if len(errors) > 1 else ""
        raise RunError(
            f"The annotations of {split} cannot be used: {errors[0].message}{more} python -m "
            "train.check lists all."
        )
    for kind, count in Counter(problem.kind for problem in source.problems).items():
        first = next(problem for problem in source.problems if problem.kind == kind)
        warn(f"{split}: {first.message} Of this kind there {_are(count)} ({kind}).")
    return source


def find_objects(data: Mapping[str, Any], split: str) -> DetectionSource:
    """Opens a split of the configured data set, with the problems of its annotations.

    Args:
      data: the section `config.data` of detection. For a folder: `folder`, `format`, and for JSON
        files `annotations` and `images`. For TensorFlow Datasets: `name`, `data_dir` and
        `unreadable`. For both: `classes` and `masks`.
      split: its name, or a TFDS split such as "train[:5%]".

    Raises:
      RunError: the data set does not exist, cannot be read as a whole, or is not for detection.
    """
    kind = data["format"]
    if kind not in (None, *FORMATS):
        raise RunError(f"config.data.format is one of {', '.join(FORMATS)}; got {kind!r}.")
    if not data["folder"] and kind:
        raise RunError(
            "config.data.format is for a folder of images with annotations: set "
            "config.data.folder, or leave it at None."
        )
    if kind == "voc":
        return _voc_source(data, split)
    source = _coco_source(data, split) if data["folder"] else read_records(data, split)
    if data["classes"]:
        file = Path(data["classes"]).expanduser()
        return source.with_classes(read_names(file), str(file))
    return source


class FileReader:
    """Image files in a folder.

    Args:
      folder: of the images.
      names: of the files, in the folder.
      ends: the first object of each image in `segmentations`, and their number.
      segmentations: JSON for each object; None for no masks.
    """

    def __init__(
        self,
        folder: Path,
        names: Names,
        ends: np.ndarray | None = None,
        segmentations: Names | None = None,
    ):
        self._folder, self._names = str(folder), names
        self._ends, self._segmentations = ends, segmentations

    def read(self, image: int) -> StoredImage:
        """See `ImageReader`."""
        path = self.origin(image)
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise image_error(path, error) from error
        if self._segmentations is None or self._ends is None:
            return StoredImage(data, path, None)
        rows = range(self._ends[image], self._ends[image + 1])
        texts = [self._segmentations[row] for row in rows]
        return StoredImage(data, path, CocoSegmentations(texts, path))

    def origin(self, image: int) -> str:
        """See `ImageReader`."""
        return f"{self._folder}/{self._names[image]}"


def _coco_source(data: Mapping[str, Any], split: str) -> DetectionSource:
    root = Path(data["folder"]).expanduser()
    path, images = (root / _of_split(data, name, split) for name in ("annotations", "images"))
    if not path.is_file():
        raise _no_annotations(root, data["annotations"], path)
    if not images.is_dir():
        raise RunError(
            f"There is no folder {images} of images for {path}: set config.data.images, where "
            "{split} is the name of the split."
        )
    file = read_coco(path, masks=data["masks"])
    return DetectionSource(
        file.table,
        file.class_names,
        file.category_ids,
        file.segmentations is not None,
        FileReader(images, file.file_names, file.table.ends, file.segmentations),
        file.problems,
    )


def _voc_source(data: Mapping[str, Any], split: str) -> DetectionSource:
    root = Path(data["folder"]).expanduser()
    if not (root / "Annotations").is_dir():
        raise RunError(
            f"There is no folder {root / 'Annotations'}: config.data.folder is a folder such as "
            "VOCdevkit/VOC2012, with Annotations, ImageSets/Main and JPEGImages."
        )
    file = root / CLASSES_FILE
    if data["classes"] or file.is_file():
        names = read_names(Path(data["classes"] or file).expanduser())
    else:
        names = label_sets.find("voc2012").class_names[1:]  # the first one is the background
    files = read_voc(root, split, names)
    return DetectionSource(
        files.table, names, tuple(range(1, len(names) + 1)), False,
        FileReader(root, files.file_names),
    )  # fmt: skip


def _of_split(data: Mapping[str, Any], field: str, split: str) -> str:
    try:
        return data[field].format(split=split)
    except (KeyError, IndexError, ValueError) as error:
        raise RunError(
            f"config.data.{field} is a path in which {{split}} is the name of the split; got "
            f"{data[field]!r}."
        ) from error


def _no_annotations(root: Path, pattern: str, path: Path) -> RunError:
    found = sorted(str(file.relative_to(root)) for file in root.glob(pattern.format(split="*")))
    shown = f" There are {', '.join(found[:10])}." if found else ""
    return RunError(
        f"There is no file {path} of annotations.{shown} Set config.data.annotations, where "
        "{split} is the name of the split."
    )


def _are(count: int) -> str:
    return "is one" if count == 1 else f"are {count:,}"
