"""Sources of images with masks: folders, and data sets of TensorFlow Datasets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import tensorflow_datasets as tfds

from replk_jax.vision import label_sets
from replk_jax.vision.images import image_error
from replk_jax.vision.label_sets import LabelSet
from train.data.class_lists import choose_label_set
from train.data.names import Names
from train.data.paired_files import Pair, PairedFiles, require_pairs
from train.data.pipeline import Example, Source
from train.data.segmentation_folders import find_pairs
from train.data.tfds_sets import FolderAlternative, PreparedSet, existing_split, read_example
from train.errors import RunError

_PAIRS = FolderAlternative(
    "images and masks, DIR/images/SPLIT/NAME.jpg and DIR/masks/SPLIT/NAME.png", " --format folder"
)
# In the README of the annotations (www.robots.ox.ac.uk/~vgg/data/pets), 3 is "not classified".
_PETS = LabelSet.of(("pet", "background", "border"), reduce_zero_label=True, name="oxford_iiit_pet")
# Data sets of TensorFlow Datasets with a known label set, which they do not contain.
_KNOWN = {"cityscapes": label_sets.find("cityscapes"), "oxford_iiit_pet": _PETS}


class SegmentationSource(Source, Protocol):
    """A source of {"image", "mask": encoded bytes, "origin", "mask_origin": str}.

    Origins identify the image and the mask in error messages.
    """

    @property
    def label_set(self) -> LabelSet:
        """The classes, and the values that stand for them in the masks."""
        ...


def open_segmentation_source(data: Mapping[str, Any], split: str) -> SegmentationSource:
    """Opens a split of the configured data set.

    Args:
      data: the section `config.data` of segmentation: for a folder, `folder`, `format`,
        `image_suffix`, `mask_suffix`; for TensorFlow Datasets, `name` and `data_dir`; and `classes`
        and `reduce_zero_label`.
      split: its name in the folder, or a TFDS split such as "train" or "train[:5%]".

    Raises:
      RunError: the data set does not exist or is not for segmentation, images have no masks, or
        the classes are not known.
    """
    if data["folder"]:
        return SegmentationFolder.open(data, split)
    if data["format"] or data["image_suffix"] or data["mask_suffix"]:
        raise RunError(
            "config.data.format, image_suffix and mask_suffix are for a folder of images and "
            "masks: set config.data.folder, or leave them at None."
        )
    return SegmentationRecords(data, split)


class SegmentationFolder:
    """Images and masks in a folder, in the order of the images' paths.

    Args:
      folder: of the data set.
      files: of a split, whose pairs are read; see `find_pairs`.
    """

    def __init__(self, folder: Path, files: PairedFiles):
        self._folder = str(folder)
        self._images = Names(pair.image for pair in files.pairs)
        self._masks = Names(pair.mask for pair in files.pairs)
        self.label_set = files.label_set

    @classmethod
    def open(cls, data: Mapping[str, Any], split: str) -> Self:
        """The images and masks of a split.

        Args:
          data, split: see `train.data.segmentation_folders.find_pairs`.

        Raises:
          RunError: see `find_pairs`; or images have no masks, or masks no images.
        """
        folder = Path(data["folder"]).expanduser()
        files = find_pairs(data, split)
        require_pairs(files, folder, split)
        return cls(folder, files)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        image, mask = (f"{self._folder}/{name}" for name in self.pair(index))
        return {
            "image": _read(image), "mask": _read(mask), "origin": image, "mask_origin": mask
        }  # fmt: skip

    def pair(self, index: int) -> Pair:
        """The paths of an image and its mask, relative to the folder."""
        return Pair(self._images[index], self._masks[index])


class _Features(NamedTuple):
    """The features of a segmentation data set of TensorFlow Datasets.

    Attributes:
      image, mask: their names.
      images: names of all features that are images, which are not decoded.
      class_names: by class; None if the data set has none.
      has_file_name: whether examples have the text `file_name`.
    """

    image: str
    mask: str
    images: tuple[str, ...]
    class_names: list[str] | None
    has_file_name: bool


class SegmentationRecords:
    """A data set of TensorFlow Datasets with images and masks, read without TensorFlow.

    The mask is the feature `LabeledImage`, or the image of one channel if there is none; its names
    of classes are used unless `classes` is set. The supervised keys decide where several features
    are possible. The classes of `cityscapes` are known, and those of `oxford_iiit_pet`: pet,
    background and border.

    Args:
      data: with `name`, `data_dir`, `classes` and `reduce_zero_label`.
      split: "train" or "train[:5%]", for example; "val" is "validation", and "training" is
        "train", if there is none of that name, as in folders.

    Raises:
      RunError: the data set is not prepared, is not for segmentation, has no such split, or its
        classes are not known.
    """

    def __init__(self, data: Mapping[str, Any], split: str):
        name = data["name"]
        prepared = PreparedSet(name, data["data_dir"], _PAIRS)
        self._features = features = _segmentation_features(prepared.info)
        skip = dict.fromkeys(features.images, tfds.decode.SkipDecoding())
        self._source = prepared.split(existing_split(prepared.info, split), skip)
        self._origin = f"{name}, split {split}, example"
        self.label_set = _record_label_set(data, prepared.info.name, features.class_names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example, origin = read_example(
            self._source, index, self._origin, self._features.has_file_name
        )
        return {
            "image": example[self._features.image],
            "mask": example[self._features.mask],
            "origin": origin,
            "mask_origin": f"of {origin}",
        }


def _record_label_set(
    data: Mapping[str, Any], name: str, class_names: list[str] | None
) -> LabelSet:
    if class_names is None or data["classes"]:
        return choose_label_set(data, _KNOWN.get(name))
    try:
        return LabelSet.of(
            class_names, reduce_zero_label=bool(data["reduce_zero_label"]), name=name
        )
    except ValueError as error:
        raise RunError(f"{name}: {error}") from error


def _segmentation_features(info: tfds.core.DatasetInfo) -> _Features:
    """The features of a segmentation data set.

    Raises:
      RunError: the data set is not for segmentation.
    """
    features = info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise _not_for_segmentation(info)
    images: dict[str, Any] = {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    labelled = [
        key for key, feature in images.items() if isinstance(feature, tfds.features.LabeledImage)
    ]
    grey = [key for key, feature in images.items() if feature.shape[-1] == 1]
    image = _only([key for key in images if key not in grey], info.supervised_keys)
    mask = _only(labelled or grey, info.supervised_keys)
    if image is None or mask is None:
        raise _not_for_segmentation(info)
    labels = images[mask]
    class_names = None
    if isinstance(labels, tfds.features.LabeledImage) and labels.num_classes:
        class_names = labels.names
    has_file_name = "file_name" in features and isinstance(
        features["file_name"], tfds.features.Text
    )
    return _Features(image, mask, tuple(images), class_names, has_file_name)


def _only(candidates: list[str], supervised_keys: Any) -> str | None:
    """The only candidate, or the only one among the supervised keys; None if there is none."""
    if len(candidates) > 1 and supervised_keys:
        candidates = [key for key in candidates if key in supervised_keys]
    return candidates[0] if len(candidates) == 1 else None


def _not_for_segmentation(info: tfds.core.DatasetInfo) -> RunError:
    return RunError(
        f"{info.name} is not a segmentation set, with one image and one mask (a LabeledImage, or "
        f"an image of one channel): its features are {info.features}."
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise image_error(path, error) from error
