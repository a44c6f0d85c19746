"""Looks up published checkpoints by tag, file name or model.

`models.pretrained_table` has those of classifiers, and `segmentation.pretrained_table` and
`detection.pretrained_table` those of segmenters and detectors. They document their tags.
"""

import difflib
import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from replk_jax.detection.pretrained_table import PRETRAINED_DETECTORS
from replk_jax.detection.registry import find_detector
from replk_jax.detection.table import DETECTORS
from replk_jax.models.aliases import spelling
from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.models.pretrained_composite import PretrainedComposite
from replk_jax.models.pretrained_table import PRETRAINED, WITHOUT_WEIGHTS, Pretrained
from replk_jax.models.registry import ARCHITECTURES, name_of, resolve_name
from replk_jax.segmentation.pretrained_table import PRETRAINED_SEGMENTERS
from replk_jax.segmentation.registry import find_segmenter
from replk_jax.segmentation.table import SEGMENTERS
from replk_jax.vision.base_preprocessing import BasePreprocessing

Entry = Pretrained | PretrainedComposite
_COMPOSITES: tuple[PretrainedComposite, ...] = (*PRETRAINED_SEGMENTERS, *PRETRAINED_DETECTORS)
ALL: tuple[Entry, ...] = (*PRETRAINED, *_COMPOSITES)


def list_pretrained(pattern: str = "*") -> list[str]:
    """The tags of the published checkpoints that match a shell-style pattern.

        list_pretrained("resnet_50")  # ["resnet_50.tv_in1k", "resnet_50.tv2_in1k"]
        list_pretrained("*in22k_ft*")  # those fine-tuned from ImageNet-22K
        list_pretrained("timm/resnet50.tv_in1k")  # ["resnet_50.tv_in1k"]
        list_pretrained("*cityscapes")  # ["upernet_replknet_31b_cityscapes.in1k"]

    A pattern of models matches all of their checkpoints. Case, hyphens and underscores are ignored.
    A pattern without wildcards can also be any name that `lookup` accepts.
    """
    patterns = spelling(pattern), spelling(f"{pattern}.*")
    matching = [
        entry.tag
        for entry in ALL
        if any(fnmatch.fnmatch(spelling(entry.tag), wanted) for wanted in patterns)
    ]
    return matching or [entry.tag for entry in _named(pattern)]


def _named(name: str) -> tuple[Entry, ...]:
    """The checkpoint with a tag or file name, or those of a model; none for an unknown name."""
    if entry := _by_tag(name) or find(name):
        return (entry,)
    try:
        return () if _has_tag(name) else entries_of(name)
    except ValueError:
        return ()


def checkpoints_of(name: str) -> tuple[Pretrained, ...]:
    """The published checkpoints of a classifier, in the order of the table; maybe none.

    Args:
      name: as in `create_model`.

    Raises:
      ValueError: an unknown name.
    """
    model = resolve_name(name)
    return tuple(entry for entry in PRETRAINED if entry.model == model)


def entries_of(name: str) -> tuple[Entry, ...]:
    """The published checkpoints of a network of any kind, in the order of the table; or none.

    Args:
      name: such as "upernet_replknet_31b_ade20k", or as in `create_model`.

    Raises:
      ValueError: an unknown name.
    """
    composite = _find_composite(name)
    if composite is None:
        return checkpoints_of(name)
    return tuple(entry for entry in _COMPOSITES if entry.model == composite)


def _find_composite(name: str) -> str | None:
    """The name of a segmenter or a detector; None for another name."""
    return find_segmenter(name) or find_detector(name)


class Accuracy(NamedTuple):
    """Top-1 on ImageNet-1K in per cent, the image size, and whether the weights are published."""

    top1: float
    image_size: int
    has_weights: bool


def published_accuracy(name: str) -> Accuracy | None:
    """The published accuracy of a registered model; None if there is none.

    It is that of the first checkpoint with one, or else of a model published without weights.

    Args:
      name: as in `create_model`.

    Raises:
      ValueError: an unknown name.
    """
    for entry in checkpoints_of(name):
        if entry.top1 is not None:
            return Accuracy(entry.top1, entry.preprocessing.image_size, has_weights=True)
    top1 = WITHOUT_WEIGHTS.get(resolve_name(name))
    return None if top1 is None else Accuracy(top1, 224, has_weights=False)


def find(path: str | os.PathLike) -> Entry | None:
    """The published checkpoint with the name of a file; None if there is none.

    Ignores the folder, the ending, a date and a hash after the name (as in mmpretrain and PyTorch
    Hub), and the number that a browser adds to a second download.
    """
    name = re.sub(r"\.(pth|pt|bin|safetensors)$", "", PurePath(path).name.lower())
    name = re.sub(r" ?\(\d+\)$", "", name)
    without_hash = re.sub(r"[-_](\d{8}-)?[0-9a-f]{8}$", "", name)
    by_name = {known.lower(): entry for known, entry in _file_names().items()}
    return by_name.get(name) or by_name.get(without_hash)


def lookup(name: str) -> Entry:
    """The published checkpoint with a tag or file name, or of a model.

    Args:
      name: a tag, with or without the prefix `timm/`; a file name, as in `find`; or the name of a
        model, as in `create_model`. Case, hyphens and underscores of tags and models are ignored.

    Raises:
      ValueError: an unknown name; a model without a published checkpoint, or with several that
        differ in preprocessing.
    """
    if entry := _by_tag(name) or find(name):
        return entry
    unknown = f"no published checkpoint or model has the name {name!r}."
    try:
        model = _find_composite(name) or resolve_name(name)
    except ValueError:
        raise ValueError(f"{unknown} {_hint(name)}") from None
    entries = entries_of(model)
    if not entries:
        raise ValueError(
            f"{model} has no published checkpoint: give the name of another model or file, or the "
            "tag of a checkpoint, whose images are prepared in the same way."
        )
    tags = ", ".join(entry.tag for entry in entries)
    if _has_tag(name):  # of other weights of this model
        raise ValueError(f"{unknown} The checkpoints of {model} are {tags}.")
    return _only(model, entries)


def _only(model: str, entries: Sequence[Entry]) -> Entry:
    """The first of the checkpoints of a model, which must share one preprocessing."""
    if len({entry.preprocessing for entry in entries}) > 1:
        raise ValueError(
            f"the published checkpoints of {model} do not share one preprocessing: name one of "
            f"{', '.join(entry.tag for entry in entries)}."
        )
    return entries[0]


def _has_tag(name: str) -> bool:
    """Whether a name ends with the tag of some weights, as in resnet50.a1_in1k."""
    return re.search(r"\.[a-z]\w*$", name, re.IGNORECASE) is not None


def _by_tag(name: str) -> Entry | None:
    tag = spelling(re.sub(r"^(hf[-_]hub:)?timm/", "", name, flags=re.IGNORECASE))
    return next((entry for entry in ALL if spelling(entry.tag) == tag), None)


def _file_names() -> dict[str, Entry]:
    return {file.name: entry for entry in ALL for file in entry.files if file.name}


def _hint(name: str) -> str:
    """The models and tags closest to an unknown name, or how to list them."""
    known = {model: model for model in ARCHITECTURES}
    known |= {composite: composite for composite in (*SEGMENTERS, *DETECTORS)}
    known |= {entry.tag: entry.tag for entry in ALL}
    known |= {file: entry.tag for file, entry in _file_names().items()}
    by_lower_case = {key.lower(): suggestion for key, suggestion in known.items()}
    close = difflib.get_close_matches(name.lower(), by_lower_case)
    if not close:
        return (
            "python -m replk_jax models lists the models. With --pretrained it lists the "
            "checkpoints."
        )
    return f"Did you mean {', '.join(dict.fromkeys(by_lower_case[match] for match in close))}?"


def recognize(path: str | os.PathLike, model: Network) -> Entry | None:
    """The published checkpoint with a file's name, if architecture and classes match the model."""
    named = find(path)
    if isinstance(named, PretrainedComposite):
        if not named.is_of(model):
            return None
    elif named is None or named.model != name_of(model):
        return None
    classes = {named.num_classes, model.num_classes}
    return named if None in classes or len(classes) == 1 else None


def default_preprocessing(model: Network) -> BasePreprocessing | None:
    """A guess of a network's preprocessing, from published checkpoints.

    It is that of the first checkpoint in the table with this architecture, preferably with the same
    number of classes, or else of the first one of the family; for segmenters and detectors, of
    this backbone or else of the first one for ADE20K or COCO. It can be wrong: the weights do not
    record, for example, whether images are 224 x 224 or 384 x 384.

    Returns:
      The preprocessing; None for another composite network, and for images without three channels.
    """
    if model.in_channels != 3:
        return None
    if table := [entry for entry in _COMPOSITES if isinstance(model, entry.network)]:
        of_backbone = [entry for entry in table if entry.is_of(model)]
        usual = next(entry for entry in table if entry.data_set == entry.usual_data_set)
        return _most_alike(of_backbone or [usual], model).preprocessing
    if not isinstance(model, Backbone):
        return None
    name, kind = name_of(model), type(model.architecture)
    family = [entry for entry in PRETRAINED if type(ARCHITECTURES[entry.model]) is kind]
    alike = [entry for entry in family if entry.model == name] or family[:1]
    return _most_alike(alike, model).preprocessing


def _most_alike(entries: Sequence[Entry], model: Network) -> Entry:
    """The first entry with the number of classes of a model, or else the first one."""
    return min(entries, key=lambda entry: entry.num_classes != model.num_classes)
