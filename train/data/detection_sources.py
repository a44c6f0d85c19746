"""Opens splits of detection data sets: JSON and XML files, and TensorFlow Datasets."""

import json
import re
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
from train.data.voc_files import VOC_LISTS, read_voc, voc_splits
from train.errors import RunError
from train.reporting.console import warn

FORMATS = ("coco", "voc_xml")
# Where COCO has the annotations and the images of a split.
COCO_ANNOTATIONS = "annotations/instances_{split}.json"
COCO_IMAGES = "{split}"


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
    if kind == "voc_xml":
        return _voc_source(data, split)
    source = _coco_source(data, split) if data["folder"] else read_records(data, split)
    if data["classes"]:
        file = Path(data["classes"]).expanduser()
        return source.with_classes(read_names(file), str(file))
    return source


def split_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits of a folder, sorted.

    Args:
      data: see `find_objects`.

    Raises:
      RunError: there are none.
    """
    root = Path(data["folder"]).expanduser()
    if data["format"] == "voc_xml":
        found = voc_splits(root)
        expected = f"lists in {root / VOC_LISTS}"
    else:
        found = [*_files_of_splits(root, data)]
        expected = f"files {root / data['annotations']}"
    if not found:
        raise RunError(f"{root} has no splits: expected {expected}.")
    return tuple(sorted(found))


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
        return StoredImage(data, path, self.read_masks(image))

    def read_masks(self, image: int) -> CocoSegmentations | None:
        """See `ImageReader`."""
        if self._segmentations is None or self._ends is None:
            return None
        rows = range(self._ends[image], self._ends[image + 1])
        return CocoSegmentations([self._segmentations[row] for row in rows], self.origin(image))

    def origin(self, image: int) -> str:
        """See `ImageReader`."""
        return f"{self._folder}/{self.name(image)}"

    def name(self, image: int) -> str:
        """The path of an image in the folder."""
        return self._names[image]

    def segmentation(self, image: int, number: int) -> Any:
        """The segmentation of an object, as the data set has it; None if there is none."""
        if self._segmentations is None or self._ends is None:
            return None
        return json.loads(self._segmentations[int(self._ends[image]) + number])


def _coco_source(data: Mapping[str, Any], split: str) -> DetectionSource:
    root = Path(data["folder"]).expanduser()
    path, images = (
        root / data[name].replace("{split}", split) for name in ("annotations", "images")
    )
    if not path.is_file():
        found = _files_of_splits(root, data)
        has = f" The splits are {', '.join(sorted(found))}." if found else ""
        raise RunError(
            f"There is no file {path} of annotations.{has} Set config.data.annotations, where "
            "{split} is the name of the split."
        )
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


def _files_of_splits(root: Path, data: Mapping[str, Any]) -> dict[str, Path]:
    """The annotation files in a folder, by the name of their split."""
    pattern = data["annotations"]
    before, *after = pattern.split("{split}")
    if not after:
        raise RunError(
            f"config.data.annotations is a path in which {{split}} is the name of the split; got "
            f"{pattern!r}."
        )
    name = re.compile(re.escape(before) + r"([^/]+)" + r"\1".join(map(re.escape, after)))
    files = [path for path in root.glob(pattern.replace("{split}", "*")) if path.is_file()]
    matches = [(name.fullmatch(path.relative_to(root).as_posix()), path) for path in files]
    return {match[1]: path for match, path in matches if match}


def _are(count: int) -> str:
    return "is one" if count == 1 else f"are {count:,}"
