"""Detection data sets of TensorFlow Datasets, read without TensorFlow."""

import concurrent.futures
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.features.bounding_boxes import bb_utils

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError, image_error, orientation
from train.data.annotated_images import DetectionSource, StoredImage
from train.data.instance_masks import CocoSegmentations, InstanceImage, InstanceMasks
from train.data.object_tables import TableBuilder
from train.data.pipeline import unreadable_error
from train.data.tfds_sets import FolderAlternative, PreparedSet, existing_split, read_example
from train.errors import RunError
from train.reporting.examination import Problem

# A feature of the objects in sets that `train.prepare` writes: an annotation in COCO's form, JSON
# with `bbox`, `area`, `iscrowd`, `ignore`, `id` and `segmentation`.
ANNOTATION = "annotation"
_FOLDER = FolderAlternative("images with COCO's annotations", " --format coco")
_THREADS = 8  # that read the sizes of the images


class _Features(NamedTuple):
    """The features of a detection data set.

    Attributes:
      image: name of the image.
      images: names of all features that are images, which are not decoded.
      objects: name of the sequence of objects.
      box, label: their names in it.
      class_names: by label.
      of_objects: names of all features in it.
      has_instances: whether there is an image `instances` with the number of an object, from 1, in
        each of its pixels.
      has_file_name: whether examples have the text `file_name`.
      has_ids: whether images have numbers.
    """

    image: str
    images: tuple[str, ...]
    objects: str
    box: str
    label: str
    class_names: tuple[str, ...]
    of_objects: tuple[str, ...]
    has_instances: bool
    has_file_name: bool
    has_ids: bool


def read_records(data: Mapping[str, Any], split: str) -> DetectionSource:
    """A split of a data set with a sequence of objects, which have a `bbox` and a class.

    `is_crowd`, `area` and `id` of objects are used where they exist. Objects that are
    `is_difficult` are crowds, as those of Pascal VOC's XML files are. Masks are those of an image
    `instances`, or those that `train.prepare` writes.

    All examples are read once, for the sizes of the images and for the objects: with a warm disk
    cache this takes about a minute for COCO's training images.

    Args:
      data: with `name`, `data_dir` and `unreadable`.
      split: "train" or "train[:5%]", for example; see also `existing_split`.

    Raises:
      RunError: the data set is not prepared, is not for detection, or has no such split; or an
        image cannot be read, unless `unreadable` is "replace", which leaves it out.
    """
    name = data["name"]
    prepared = PreparedSet(name, data["data_dir"], _FOLDER)
    features = _detection_features(prepared.info)
    skip = dict.fromkeys(features.images, tfds.decode.SkipDecoding())
    records = prepared.split(existing_split(prepared.info, split), skip)
    reader = _RecordReader(records, features, f"{name}, split {split}, example")
    builder, problems, positions, has_masks = TableBuilder(), [], [], features.has_instances
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for position, found in enumerate(pool.map(reader.look_at, range(len(records)))):
            if isinstance(found, ImageError):
                if data["unreadable"] != "replace":
                    raise unreadable_error(found) from found
                problems.append(Problem("warning", "unreadable image", escaped(str(found))))
                continue
            builder.add_image(
                position + 1 if found.image_id is None else found.image_id, *found.size
            )
            for item in found.objects:
                builder.add_object(**item)
            positions.append(position)
            has_masks |= found.has_masks
    return DetectionSource(
        builder.table(),
        features.class_names,
        tuple(range(1, len(features.class_names) + 1)),
        has_masks,
        reader.at(np.array(positions, np.int64)),
        problems,
    )


class _LookedAt(NamedTuple):
    """What a table needs of an example."""

    image_id: int | None
    size: tuple[int, int]
    objects: list[dict[str, Any]]
    has_masks: bool


class _RecordReader:
    """See `ImageReader`.

    Args:
      records: of the split.
      features: of the data set.
      origin: of the examples, in words.
      positions: of the images in the split; None for all.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        features: _Features,
        origin: str,
        positions: np.ndarray | None = None,
    ):
        self._records, self._features, self._origin = records, features, origin
        self._positions = positions

    def at(self, positions: np.ndarray) -> "_RecordReader":
        """A reader of the examples at some positions of the split."""
        return _RecordReader(self._records, self._features, self._origin, positions)

    def read(self, image: int) -> StoredImage:
        """See `ImageReader`."""
        example, origin = self._example(image)
        return StoredImage(example[self._features.image], origin, self._masks(example, origin))

    def read_masks(self, image: int) -> InstanceMasks | None:
        """See `ImageReader`."""
        return self._masks(*self._example(image))

    def origin(self, image: int) -> str:
        """See `ImageReader`."""
        return self._example(image)[1] if self._features.has_file_name else self._name(image)

    def look_at(self, image: int) -> _LookedAt | ImageError:
        """What the table needs of an example; an error if its image cannot be read."""
        try:
            example, origin = self._example(image)
            size = _upright_size(example[self._features.image], origin)
        except ImageError as error:
            return error
        annotations = self._annotations(example)
        objects = example[self._features.objects]
        if annotations is None:
            found = [*self._objects(objects, size, origin)]
        else:
            labels = np.asarray(objects[self._features.label], np.int64).tolist()
            found = [
                {
                    "box": annotation["bbox"],
                    "class_number": label,
                    "area": annotation["area"],
                    "crowd": bool(annotation["iscrowd"]),
                    "ignored": bool(annotation["ignore"]),
                    "object_id": annotation["id"],
                }
                for label, annotation in zip(labels, annotations, strict=True)
            ]
        image_id = int(example["image/id"]) if self._features.has_ids else None
        has_masks = any(item["segmentation"] is not None for item in annotations or ())
        return _LookedAt(image_id, size, found, has_masks)

    def _example(self, image: int) -> tuple[dict[str, Any], str]:
        position = image if self._positions is None else int(self._positions[image])
        return read_example(self._records, position, self._origin, self._features.has_file_name)

    def _name(self, image: int) -> str:
        return f"{self._origin} {image if self._positions is None else self._positions[image]}"

    def _objects(self, objects: dict[str, Any], size: tuple[int, int], origin: str):
        """The objects of an example, as `TableBuilder.add_object` takes them."""
        features = self._features
        height, width = size
        labels = np.asarray(objects[features.label], np.int64).tolist()
        if wrong := [label for label in labels if not 0 <= label < len(features.class_names)]:
            raise RunError(f"{origin} has an object with the label {wrong[0]}, which is no class.")
        top, left, bottom, right = np.asarray(objects[features.box], np.float64).reshape(-1, 4).T
        boxes = np.stack(
            (left * width, top * height, (right - left) * width, (bottom - top) * height), axis=1
        )
        crowd = np.zeros(len(labels), bool)
        for key in ("is_crowd", "is_difficult"):
            if key in features.of_objects:
                crowd |= np.asarray(objects[key], bool)
        for i, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True)):
            yield {
                "box": box,
                "class_number": label,
                "crowd": bool(crowd[i]),
                "area": float(objects["area"][i]) if "area" in features.of_objects else None,
                "object_id": int(objects["id"][i]) if "id" in features.of_objects else None,
            }

    def _annotations(self, example: dict[str, Any]) -> list[dict[str, Any]] | None:
        if ANNOTATION not in self._features.of_objects:
            return None
        return [json.loads(text) for text in example[self._features.objects][ANNOTATION]]

    def _masks(self, example: dict[str, Any], origin: str) -> InstanceMasks | None:
        if self._features.has_instances:
            return InstanceImage(example["instances"], origin)
        annotations = self._annotations(example)
        if annotations is None:
            return None
        texts = [json.dumps(annotation["segmentation"]) for annotation in annotations]
        return CocoSegmentations(texts, origin)


def _upright_size(data: bytes, origin: str) -> tuple[int, int]:
    """(height, width) of an image, from the header of its file, with its EXIF orientation."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = orientation(image) >= 5  # these swap the sides
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # Pillow raises all kinds of errors
        raise image_error(origin, error) from error


def _detection_features(info: tfds.core.DatasetInfo) -> _Features:
    """The features of a detection data set.

    Raises:
      RunError: the data set is not for detection.
    """
    features = info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise _not_for_detection(info)
    images: dict[str, Any] = {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    coloured = [key for key, feature in images.items() if feature.shape[-1] != 1]
    image = "image" if "image" in coloured else coloured[0] if len(coloured) == 1 else None
    for name, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
        if not isinstance(inner, tfds.features.FeaturesDict) or image is None:
            continue
        boxes = [key for key, feature in inner.items() if _is_box(feature)]
        labels = [k for k, f in inner.items() if isinstance(f, tfds.features.ClassLabel)]
        label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
        if len(boxes) != 1 or label is None:
            continue
        classes: Any = inner[label]
        return _Features(
            image,
            tuple(images),
            name,
            boxes[0],
            label,
            tuple(classes.names),
            tuple(inner),
            "instances" in images and images["instances"].shape[-1] == 1,
            "file_name" in features and isinstance(features["file_name"], tfds.features.Text),
            "image/id" in features,
        )
    raise _not_for_detection(info)


def _is_box(feature: Any) -> bool:
    return (
        isinstance(feature, tfds.features.BBoxFeature)
        and feature.bbox_format == bb_utils.BBoxFormat.REL_YXYX
    )


def _not_for_detection(info: tfds.core.DatasetInfo) -> RunError:
    return RunError(
        f"{info.name} is not a detection set, with one image and a sequence of objects that have a "
        f"box (a BBoxFeature, fractions of height and width) and a class (a ClassLabel): its "
        f"features are {info.features}."
    )
