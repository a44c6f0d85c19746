"""Prepares a data set for training, in the layout of TensorFlow Datasets but without TensorFlow.

It takes ImageNet's tars from image-net.org, or a folder with SPLIT/<class>/<image>, where SPLIT is
train or val for example:

    python -m train.prepare imagenet2012 --tars DIR --data_dir DATA_DIR
    python -m train.prepare FOLDER --name NAME --data_dir DATA_DIR

Every image is decoded once, to find those that cannot be read before training. Started again after
an interruption, the same command resumes. Train with --config.data.name=NAME
--config.data.data_dir=DATA_DIR.
"""

import argparse
import io
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core import constants

from replk_jax.cli.argument_types import positive
from replk_jax.cli.clean_exit import clean_exit
from replk_jax.io.text import escape_unencodable_output, escaped_lines, storable
from replk_jax.vision.images import read_image
from train.data.ilsvrc import Contents, train_images, validation_images
from train.data.records import Item, write_dataset
from train.data.sources import FolderSource
from train.errors import RunError

FOLDER_VERSION = "1.0.0"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; errors end it with a message and exit status 1."""
    escape_unencodable_output()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.tars and options.set != "imagenet2012":
        parser.error("--tars belongs to imagenet2012; for a folder name the set with --name")
    logging.set_verbosity(logging.ERROR)  # TFDS warns that the data set does not exist yet
    data_dir = Path(options.data_dir).expanduser().absolute()
    writing = {"processes": options.processes, "keep_unreadable": options.keep_unreadable}
    try:
        if options.tars:
            result = prepare_imagenet(Path(options.tars).expanduser(), data_dir, **writing)
        else:
            folder = Path(options.set).expanduser()
            result = prepare_folder(folder, options.name, data_dir, **writing)
    except RunError as error:
        sys.exit(f"error: {escaped_lines(str(error))}")
    except KeyboardInterrupt:
        print("The same command resumes the preparation.", file=sys.stderr)
        raise
    name = result.parent.name
    print(
        f"{name} is in {result}. Train with --config.data.name={name} "
        f"--config.data.data_dir={data_dir}"
    )


def prepare_imagenet(
    tars: Path,
    data_dir: Path,
    contents: Contents | None = None,
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> Path:
    """Prepares ILSVRC2012 as TensorFlow Datasets' `imagenet2012`.

    The few images that are CMYK, or PNG in spite of their name, become RGB JPEGs, as there.

    Args:
      tars: folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
      data_dir: folder of the data sets.
      contents: expected in the tars; None for ILSVRC2012.
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the data set.

    Raises:
      RunError: a tar is missing or incomplete, or the data set cannot be written.
    """
    info = tfds.builder("imagenet2012", data_dir=data_dir).info
    if not _exists(info):
        contents = contents or Contents()
        splits = {
            "validation": validation_images(tars, contents),
            "train": train_images(tars, contents),
        }
        write_dataset(
            info, splits, as_rgb_jpeg, processes=processes, keep_unreadable=keep_unreadable
        )
    return Path(info.data_dir)


def prepare_folder(
    folder: Path,
    name: str,
    data_dir: Path,
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> Path:
    """Prepares the images in `folder/<split>/<class>/`; the split "val" becomes "validation".

    Args:
      folder: of the splits; hidden folders are skipped.
      name: of the data set: small letters, digits and underscores.
      data_dir: folder of the data sets.
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the data set.

    Raises:
      RunError: there are no such images, the name is taken, or the data set cannot be written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise RunError(f"--name {name}: use small letters, digits and underscores.")
    if name in tfds.list_builders(with_community_datasets=False):
        raise RunError(f"--name {name} is a data set of TensorFlow Datasets: use another name.")
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}.")
    result = data_dir / name / FOLDER_VERSION
    splits = {
        "validation" if name == "val" else name: FolderImages(folder, name)
        for name in _split_names(folder)
    }
    info = _folder_info(name, result, _common_classes(folder, splits))
    if not _exists(info):
        write_dataset(info, splits, checked, processes=processes, keep_unreadable=keep_unreadable)
    return result


class FolderImages:
    """The images of a split in a folder, as items to store.

    Args:
      folder: of the splits.
      split: name of the subfolder.

    Raises:
      RunError: there are no images.
    """

    def __init__(self, folder: Path, split: str):
        self._folder = folder / split
        self._source = FolderSource(folder, split)
        self.class_names = self._source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Item:
        name = self._source.name(index)
        return Item(storable(name), self._source.label(index), f"{self._folder}/{name}")


def checked(data: bytes, name: str) -> bytes:
    """The bytes themselves, after decoding them.

    Raises:
      ImageError: they are no image, or an incomplete one.
    """
    read_image(data, 3, name)
    return data


def as_rgb_jpeg(data: bytes, name: str) -> bytes:
    """The bytes themselves if they are a grey or RGB JPEG; otherwise the image as an RGB JPEG.

    Raises:
      ImageError: the bytes are no image, or an incomplete one.
    """
    image = read_image(data, 3, name)
    with Image.open(io.BytesIO(data)) as stored:
        if data.startswith(b"\xff\xd8") and stored.mode in ("L", "RGB"):
            return data
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=100)
    return encoded.getvalue()


def _exists(info: tfds.core.DatasetInfo) -> bool:
    """Whether the data set is prepared already; raises RunError if it has another format."""
    path = Path(info.data_dir) / "dataset_info.json"
    if not path.exists():
        return False
    if json.loads(path.read_text()).get("fileFormat") != "array_record":
        raise RunError(
            f"{path.parent} has another format: remove it, and run the same command again."
        )
    return True


def _split_names(folder: Path) -> list[str]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise RunError(
                f"{folder / name} is no valid name for a split, which has letters, digits, hyphens "
                "and underscores only: rename the folder, or move it elsewhere."
            )
    return names


def _common_classes(folder: Path, splits: dict[str, FolderImages]) -> list[str]:
    if not splits:
        raise RunError(f"{folder} has no splits: expected {folder}/train/<class>/<image>.")
    first, *others = splits
    class_names = splits[first].class_names
    for other in others:
        if difference := set(class_names) ^ set(splits[other].class_names):
            raise RunError(
                f"The splits {first} and {other} in {folder} do not have the same classes: "
                f"{sorted(difference)[0]} is in one of them only."
            )
    return class_names


def _folder_info(name: str, folder: Path, class_names: list[str]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(FOLDER_VERSION),
            data_dir=str(folder),
            module_name="train.prepare",
        ),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=class_names),
                "file_name": tfds.features.Text(),
            }
        ),
        supervised_keys=("image", "label"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", help="imagenet2012, or a folder with splits of class folders")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tars", metavar="DIR", help="folder of the tars of imagenet2012")
    kind.add_argument("--name", help="name of the data set made from a folder")
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        default=constants.DATA_DIR,
        help="folder of the data sets (%(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="number of processes (%(default)s)",
    )
    parser.add_argument(
        "--keep_unreadable",
        action="store_true",
        help="store images that cannot be read as they are, and list them",
    )
    return parser


if __name__ == "__main__":
    # SIGTERM is handled like SIGINT, so that worker processes end and free their semaphores.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with clean_exit():
        main()
