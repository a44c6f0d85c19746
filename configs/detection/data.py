"""The fields of the section `data` that only detection has."""

from typing import Any

from ml_collections import config_dict

# The short sides of RepLKNet's published configurations (detection/configs); long sides are 1333.
_SHORT_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
_LONG_SIDE = 1333


def data_fields() -> dict[str, Any]:
    """The fields, with the values of FCOS on COCO."""
    return {
        # A folder of images with annotations: "coco" (None) for COCO's JSON files, or "voc_xml" for
        # Pascal VOC's XML files. See train/data/detection_sources.py.
        "format": config_dict.placeholder(str),
        # For COCO's JSON files: the file of a split, and the folder of its images, in `folder`.
        "annotations": "annotations/instances_{split}.json",
        "images": "{split}",
        # A file with the name of a class per line. For JSON files and TensorFlow Datasets, the
        # classes to use (None: all), in any order; for XML files, all classes (None: the 20 of
        # Pascal VOC).
        "classes": config_dict.placeholder(str),
        # Whether masks of the objects are read; False for boxes alone.
        "masks": False,
        # Whether training leaves out images without annotations.
        "filter_empty": True,
        # An image is resized within one of these pairs of (long, short) sides, at random.
        "scales": ((_LONG_SIDE, 640), (_LONG_SIDE, 800)),
        # "resize" does only that. "crop" does it for half of the images; it first resizes the
        # others within one of `crop_scales`, and crops them to random sides of `crop_sizes`
        # (smallest, largest).
        "policy": "resize",
        "crop_scales": ((_LONG_SIDE, 400), (_LONG_SIDE, 500), (_LONG_SIDE, 600)),
        "crop_sizes": (384, 600),
        "flip": True,  # half of the images: with "crop" before all else, with "resize" after it
        # (height, width) of padded images; a program is compiled for each. (): two, that hold all
        # wide and all high images of `scales`.
        "buckets": (),
        # Objects of an image; the smallest of more are left out. COCO has 93 at most.
        "max_objects": 100,
    }


def crop_policy(data: Any) -> None:
    """The augmentation of Cascade Mask R-CNN.

    Args:
      data: the section, whose fields are set.
    """
    data.scales = tuple((_LONG_SIDE, short) for short in _SHORT_SIDES)
    data.policy = "crop"
    data.masks = True
