"""Prepared data sets of TensorFlow Datasets, opened for reading without TensorFlow."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from replk_jax.vision.images import image_error
from train.data.folder_sets import stored_name
from train.errors import RunError, expect_utf8


class FolderAlternative(NamedTuple):
    """A folder that can be read in place of a prepared data set, as error messages describe it.

    Attributes:
      contents: what it has.
      arguments: of `train.prepare` for it, with a space before each.
    """

    contents: str
    arguments: str = ""


class PreparedSet:
    """A data set of TensorFlow Datasets on disk.

    Args:
      name: of the data set.
      data_dir: folder of the data sets; None for the default of TensorFlow Datasets.
      folder: what can be read in place of it.

    Raises:
      RunError: the data set is unknown or not prepared.
    """

    def __init__(self, name: str, data_dir: str | None, folder: FolderAlternative):
        expect_utf8(data_dir or "")
        self._name, self._data_dir, self._folder = name, data_dir, folder
        self._builder = _find_builder(name, data_dir)
        if not self._builder.is_prepared():
            raise RunError(
                f"{name} is not prepared in {self._builder.data_dir}.\n{self._how_to_prepare()}"
            )

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """The features and splits."""
        return self._builder.info

    def split(self, split: str, decoders: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        """The examples of a split, by position.

        Args:
          split: "train" or "train[:5%]", for example.
          decoders: by name of the feature.

        Raises:
          RunError: the data set has no such split, or has a format without random access.
        """
        try:
            return self._builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]  # a decorator of TFDS hides the parameters
        except NotImplementedError as error:
            raise RunError(
                f"{self._name} in {self._builder.data_dir} is stored in a format without random "
                f"access. Remove it, and prepare it again.\n{self._how_to_prepare()}"
            ) from error
        except (ValueError, AssertionError) as error:
            splits = ", ".join(sorted(self.info.splits))
            raise RunError(
                f"{self._name} has no split {split!r}; it has {splits}, and parts of them such as "
                f"{sorted(self.info.splits)[0]}[:10%]. ({error})"
            ) from error

    def _how_to_prepare(self) -> str:
        where = self._data_dir or constants.DATA_DIR
        if self._name == "imagenet2012":
            command = (
                "Prepare it once, from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of "
                "image-net.org:\n"
                f"  python -m train.prepare imagenet2012 --tars DIR --data_dir {where}"
            )
        else:
            argument = f", data_dir={self._data_dir!r}" if self._data_dir else ""
            command = (
                "Prepare it once, in an environment that has TensorFlow "
                "(pip install tensorflow-cpu; training itself does not need it):\n"
                '  python -c "import tensorflow_datasets as tfds; tfds.builder('
                f"{self._name!r}{argument}, file_format='array_record').download_and_prepare()\""
            )
        return (
            f"{command}\n"
            "If it is in another folder, set --config.data.data_dir=DIR.\n"
            f"Or train on a folder of {self._folder.contents}, with --config.data.folder=DIR. A "
            "folder with very many files should be prepared as well:\n"
            f"  python -m train.prepare DIR --name NAME{self._folder.arguments} --data_dir {where}"
        )


def existing_split(info: tfds.core.DatasetInfo, split: str) -> str:
    """The split as the data set has it.

    Args:
      info: of the data set.
      split: "train" or "train[:5%]", for example; "val" is "validation", and "training" is "train",
        if there is none of that name, as in folders.
    """
    name, bracket, part = split.partition("[")
    other = stored_name(name)
    return f"{other}{bracket}{part}" if name not in info.splits and other in info.splits else split


def read_example(
    source: Sequence[dict[str, Any]], index: int, origin: str, has_file_name: bool
) -> tuple[dict[str, Any], str]:
    """An example of a split, and its origin in words.

    Args:
      source: from `PreparedSet.split`.
      index: position of the example.
      origin: the data set and the split, in words.
      has_file_name: whether examples have the text `file_name`, which the origin then states.

    Raises:
      ImageError: the file of the example is damaged.
    """
    origin = f"{origin} {index}"
    try:
        example = source[index]
    except (RuntimeError, OSError) as error:  # from array_record's checksums
        raise image_error(origin, error) from error
    if has_file_name:
        origin += f" ({example['file_name'].decode()})"
    return example, origin


def _find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        folder = data_dir or constants.DATA_DIR
        raise RunError(
            f"TensorFlow Datasets knows no {name!r}, and none is prepared in {folder}.{hint}"
        ) from error
    except ImportError as error:
        raise RunError(f"The builder of {name} cannot be imported: {error}.") from error
