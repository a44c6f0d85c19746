"""Prepares a data set for training, without TensorFlow, as TensorFlow Datasets lays it on disk.

ImageNet from the tars of image-net.org, and any folder of SPLIT/<class>/<image>, such as train/
and val/:

    python -m train.prepare imagenet2012 --tars DIR --data_dir DATA_DIR
    python -m train.prepare FOLDER --name NAME --data_dir DATA_DIR

Every image is decoded once, so that training meets none that it cannot read. Killed and started
again, it goes on where it was. Train with --config.data.name=NAME --config.data.data_dir=DATA_DIR.
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
    """Runs the program; ends it with exit status 1 and a line where it cannot go on."""
    escape_unencodable_output()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.tars and options.set != "imagenet2012":
        parser.error("--tars belongs to imagenet2012; for a folder name the set with --name")
    logging.set_verbosity(logging.ERROR)  # TFDS warns of what is about to be written
    data_dir = Path(options.data_dir).expanduser().absolute()
    writing = {"processes": options.processes, "keep_unreadable": options.keep_unreadable}
    try:
        if options.tars:
            place = prepare_imagenet(Path(options.tars).expanduser(), data_dir, **writing)
        else:
            folder = Path(options.set).expanduser()
            place = prepare_folder(folder, options.name, data_dir, **writing)
    except RunError as error:
        sys.exit(f"error: {escaped_lines(str(error))}")
    except KeyboardInterrupt:
        print("The same command resumes from what is written.", file=sys.stderr)
        raise
    name = place.parent.name
    print(
        f"{name} is in {place}. Train with --config.data.name={name} "
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
      data_dir: where data sets lie.
      contents: what the tars must hold; None for all of ILSVRC2012.
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the set.

    Raises:
      RunError: tars that are not there or not whole, or a set that cannot be written.
    """
    info = tfds.builder("imagenet2012", data_dir=data_dir).info
    if not _is_there(info):
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
    """Prepares the images in `folder/<split>/<class>/`, of which "val" becomes "validation".

    Args:
      folder: of the splits; hidden ones are passed over.
      name: for the set: small letters, digits and underscores.
      data_dir: where data sets lie.
      processes, keep_unreadable: see `write_dataset`.

    Returns:
      The folder of the set.

    Raises:
      RunError: a folder without such images, a name that is taken, or a set that cannot be
        written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise RunError(f"--name {name}: use small letters, digits and underscores.")
    if name in tfds.list_builders(with_community_datasets=False):
        raise RunError(f"--name {name} is a set of TensorFlow Datasets: find another one.")
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}.")
    place = data_dir / name / FOLDER_VERSION
    splits = {
        "validation" if name == "val" else name: FolderImages(folder, name)
        for name in _split_names(folder)
    }
    info = _folder_info(name, place, _common_classes(folder, splits))
    if not _is_there(info):
        write_dataset(info, splits, whole, processes=processes, keep_unreadable=keep_unreadable)
    return place


class FolderImages(Sequence):
    """The images of a split in a folder, as items to store; their names as `storable` has them.

    Raises:
      RunError: there are none.
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


def whole(data: bytes, name: str) -> bytes:
    """The bytes themselves, found to be an image.

    Raises:
      ImageError: they are none, or not the whole of one.
    """
    read_image(data, 3, name)
    return data


def as_rgb_jpeg(data: bytes, name: str) -> bytes:
    """The bytes themselves if they are a grey or RGB JPEG, else the image as an RGB JPEG.

    Raises:
      ImageError: as `whole`.
    """
    image = read_image(data, 3, name)
    with Image.open(io.BytesIO(data)) as stored:
        if data.startswith(b"\xff\xd8") and stored.mode in ("L", "RGB"):
            return data
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=100)
    return encoded.getvalue()


def _is_there(info: tfds.core.DatasetInfo) -> bool:
    path = Path(info.data_dir) / "dataset_info.json"
    if not path.exists():
        return False
    if json.loads(path.read_text()).get("fileFormat") != "array_record":
        raise RunError(f"{path.parent} holds the set in another format: remove it to prepare it.")
    return True


def _split_names(folder: Path) -> list[str]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise RunError(
                f"{folder / name} is taken for a split, whose name must consist of letters, "
                "digits, hyphens and underscores: rename the folder, or move it elsewhere."
            )
    return names


def _common_classes(folder: Path, splits: dict[str, FolderImages]) -> list[str]:
    if not splits:
        raise RunError(f"{folder} holds no splits: expected {folder}/train/<class>/<image>.")
    first, *others = splits
    class_names = splits[first].class_names
    for other in others:
        if difference := set(class_names) ^ set(splits[other].class_names):
            raise RunError(
                f"The splits {first} and {other} in {folder} do not have the same classes: "
                f"{sorted(difference)[0]} is in one of them only."
            )
    return class_names


def _folder_info(name: str, place: Path, class_names: list[str]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(FOLDER_VERSION),
            data_dir=str(place),
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
    parser.add_argument("set", help="imagenet2012, or a folder of splits of class folders")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tars", metavar="DIR", help="the tars of imagenet2012")
    kind.add_argument("--name", help="what to call the set of a folder")
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        default=tfds.core.constants.DATA_DIR,
        help="where data sets lie (%(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="that decode and write (%(default)s)",
    )
    parser.add_argument(
        "--keep_unreadable",
        action="store_true",
        help="store images that cannot be read as they are, and list them",
    )
    return parser


if __name__ == "__main__":
    # As SIGINT: the worker processes end, and leave no semaphores behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with clean_exit():
        main()
