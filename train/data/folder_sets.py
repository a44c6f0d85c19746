"""Data sets that are prepared from a user's folder: their names, places and metadata."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from train.errors import RunError

VERSION = "1.0.0"


def folder_info(
    name: str,
    data_dir: Path,
    features: Mapping[str, tfds.features.FeatureConnector],
    supervised_keys: tuple[str, str] | None = None,
) -> tfds.core.DatasetInfo:
    """The metadata of a data set, which is not on disk yet.

    Args:
      name: of the data set; see `require_name`.
      data_dir: folder of the data sets.
      features: by name; the text `file_name` is added.
      supervised_keys: names of the input and of the target; None for no such pair.
    """
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir=str(data_dir / name / VERSION),
            module_name="train.prepare",
        ),
        features=tfds.features.FeaturesDict({**features, "file_name": tfds.features.Text()}),
        supervised_keys=supervised_keys,
    )


def require_name(name: str) -> None:
    """Raises RunError for a name that a data set cannot have."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise RunError(f"--name {name}: use small letters, digits and underscores.")
    if name in tfds.list_builders(with_community_datasets=False):
        raise RunError(f"--name {name} is a data set of TensorFlow Datasets: use another name.")


def require_folder(folder: Path) -> None:
    """Raises RunError if the folder does not exist."""
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}.")


def require_split_name(folder: Path, name: str) -> None:
    """Raises RunError if a split of a folder cannot have this name."""
    if not re.fullmatch(r"[\w-]+", name):
        raise RunError(
            f"{folder / name} is no valid name for a split, which has letters, digits, hyphens "
            "and underscores only: rename the folder, or move it elsewhere."
        )


def stored_name(split: str) -> str:
    """The name under which a split is stored: those of TensorFlow Datasets for the usual ones."""
    return {"val": "validation", "training": "train"}.get(split, split)


def is_prepared(info: tfds.core.DatasetInfo) -> bool:
    """Whether the data set is prepared already; raises RunError if it has another format."""
    path = Path(info.data_dir) / "dataset_info.json"
    if not path.exists():
        return False
    if json.loads(path.read_text()).get("fileFormat") != "array_record":
        raise RunError(
            f"{path.parent} has another format: remove it, and run the same command again."
        )
    return True
