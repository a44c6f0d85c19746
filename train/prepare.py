"""Prepares a data set for training, in the layout of TensorFlow Datasets but without TensorFlow.

It takes ImageNet's tars from image-net.org, a folder with SPLIT/<class>/<image>, where SPLIT is
train or val for example, or a folder of images with masks or with annotated objects:

    python -m train.prepare imagenet2012 --tars DIR --data_dir DATA_DIR
    python -m train.prepare FOLDER --name NAME --data_dir DATA_DIR
    python -m train.prepare FOLDER --name NAME --data_dir DATA_DIR --format FORMAT

For segmentation FORMAT is "ade20k", "cityscapes", "voc" or "folder": any folder with
images/SPLIT/NAME.jpg and masks/SPLIT/NAME.png, or SPLIT/images and SPLIT/masks, or images, masks
and a list SPLIT.txt; and with the names of the classes in classes.txt.

For detection FORMAT is "coco", with annotations/instances_SPLIT.json and images in SPLIT (for other
places see --annotations and --images), or "voc_xml", a folder such as VOCdevkit/VOC2012.

Every image and mask is decoded once, to find those that cannot be read before training. Started
again after an interruption, the same command resumes. Train with --config.data.name=NAME
--config.data.data_dir=DATA_DIR.
"""

import argparse
import functools
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core import constants

from replk_jax.cli.argument_types import positive
from replk_jax.cli.clean_exit import clean_exit
from replk_jax.io.text import escape_unencodable_output, escaped_lines, storable
from replk_jax.vision.images import read_image
from train.data import detection_sources, segmentation_folders
from train.data.detection_records import prepare_objects
from train.data.folder_sets import (
    folder_info,
    is_prepared,
    require_folder,
    require_name,
    require_split_name,
)
from train.data.ilsvrc import Contents, train_images, validation_images
from train.data.items import Item, image_example
from train.data.records import write_dataset
from train.data.segmentation_folders import has_images_and_masks
from train.data.segmentation_records import prepare_pairs
from train.data.sources import FolderSource
from train.errors import RunError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; errors end it with a message and exit status 1."""
    escape_unencodable_output()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.tars and options.set != "imagenet2012":
        parser.error("--tars belongs to imagenet2012; for a folder name the set with --name")
    if given := _misplaced(options):
        parser.error(given)
    logging.set_verbosity(logging.ERROR)  # TFDS warns that the data set does not exist yet
    data_dir = Path(options.data_dir).expanduser().absolute()
    writing = {"processes": options.processes, "keep_unreadable": options.keep_unreadable}
    try:
        if options.tars:
            result = prepare_imagenet(Path(options.tars).expanduser(), data_dir, **writing)
        elif options.format:
            prepare = (
                prepare_objects if options.format in detection_sources.FORMATS else prepare_pairs
            )
            splits = tuple(options.splits or ())
            result = prepare(_folder_of(options), options.name, data_dir, splits, **writing)
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
    if not is_prepared(info):
        contents = contents or Contents()
        splits = {
            "validation": validation_images(tars, contents),
            "train": train_images(tars, contents),
        }
        write_dataset(
            info,
            splits,
            functools.partial(image_example, as_rgb_jpeg),
            processes=processes,
            keep_unreadable=keep_unreadable,
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
      RunError: there are no such images, they have masks, the name is taken, or the data set cannot
        be written.
    """
    require_name(name)
    require_folder(folder)
    if has_images_and_masks(folder):
        raise RunError(
            f"{folder} has images and masks, and would become a set for classification: add "
            "--format folder, or that of the set."
        )
    splits = {
        "validation" if name == "val" else name: FolderImages(folder, name)
        for name in _split_names(folder)
    }
    info = folder_info(
        name,
        data_dir,
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=_common_classes(folder, splits)),
        },
        ("image", "label"),
    )
    if not is_prepared(info):
        write_dataset(
            info,
            splits,
            functools.partial(image_example, checked),
            processes=processes,
            keep_unreadable=keep_unreadable,
        )
    return Path(info.data_dir)


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


def _split_names(folder: Path) -> list[str]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    for name in names:
        require_split_name(folder, name)
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
    annotated = parser.add_argument_group("images with masks or objects")
    annotated.add_argument(
        "--format",
        choices=(*segmentation_folders.FORMATS, *detection_sources.FORMATS),
        help="layout of the folder",
    )
    annotated.add_argument("--splits", nargs="+", metavar="SPLIT", help="to prepare (all)")
    annotated.add_argument(
        "--classes", metavar="FILE", help="file with the name of a class in each line"
    )
    objects = parser.add_argument_group("images with COCO's JSON files")
    objects.add_argument(
        "--annotations",
        metavar="PATH",
        help=f"the file of a split ({detection_sources.COCO_ANNOTATIONS})",
    )
    objects.add_argument(
        "--images", metavar="PATH", help=f"the images of a split ({detection_sources.COCO_IMAGES})"
    )
    pairs = parser.add_argument_group("images and masks")
    pairs.add_argument("--image_suffix", metavar="END", help="ending of the images (any)")
    pairs.add_argument("--mask_suffix", metavar="END", help="ending of the masks (.png)")
    pairs.add_argument(
        "--reduce_zero_label",
        action="store_const",
        const=True,
        help="0 in the masks is ignored, and the first class is 1; ade20k is like this",
    )
    return parser


def _misplaced(options: argparse.Namespace) -> str | None:
    """The error about an option that is given, but does not belong to the format."""
    of_masks = ("image_suffix", "mask_suffix", "reduce_zero_label")
    of_objects = ("annotations", "images")
    is_detection = options.format in detection_sources.FORMATS
    misplaced = {
        "for images and masks: use a --format of these": of_masks
        if is_detection or not options.format
        else (),
        "for COCO's JSON files: add --format coco": of_objects if options.format != "coco" else (),
        "for a folder with a --format: add it": () if options.format else ("splits", "classes"),
    }
    for reason, names in misplaced.items():
        for name in names:
            if getattr(options, name) is not None:
                return f"--{name} is {reason}"
    return None


def _folder_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `config.data` that describe the folder."""
    names = ("format", "image_suffix", "mask_suffix", "classes", "reduce_zero_label")
    return {
        "folder": options.set,
        **{name: getattr(options, name) for name in names},
        "annotations": options.annotations or detection_sources.COCO_ANNOTATIONS,
        "images": options.images or detection_sources.COCO_IMAGES,
        "masks": True,
    }


if __name__ == "__main__":
    # SIGTERM is handled like SIGINT, so that worker processes end and free their semaphores.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with clean_exit():
        main()
