"""Preprocessing and class names that other libraries save in a checkpoint or next to it.

timm and transformers write them in JSON files next to the weights; mmengine, torchvision's training
script and the official code of RepLKNet save them in the checkpoint, with the weights.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from replk_jax import pretrained
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models import registry
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.pretrained_composite import PretrainedComposite
from replk_jax.torch_import.composites import COMPOSITES
from replk_jax.torch_import.config_fields import crop_fraction, number, whole_number
from replk_jax.torch_import.json_config import (
    timm_class_names,
    timm_preprocessing,
    transformers_class_names,
    transformers_preprocessing,
)
from replk_jax.torch_import.mm_config import (
    BackboneSettings,
    mm_backbone,
    mm_class_names,
    mm_preprocessing,
    parse_config,
    resizes_with_opencv,
)
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.torch_files import Contents
from replk_jax.vision import label_sets
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.preprocessing import Preprocessing

_LARGEST_JSON = 1 << 24  # bytes; a config.json with the names of 21,841 classes has 2 MB

# The JSON files, with the fields that say something of images or classes.
_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_JSON_FIELDS = {
    _CONFIG: {"pretrained_cfg", "input_size", "label_names", "id2label"},
    _PROCESSOR: {"size", "crop_size", "image_mean"},
}
# Files that these JSON files belong to, also where they do not identify the network.
_OF_FOLDER = re.compile(
    r"(pytorch_|diffusion_pytorch_|open_clip_|open_clip_pytorch_)?model.*"
    r"\.(safetensors|bin)(\.index\.json)?"
)
# timm's arguments that leave the sizes of a registered network as they are.
_NOT_OF_SIZE = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "output_stride"}

_META, _ARGS = "its meta entry", "its args entry"
_FILE_NAME = "the name of a published checkpoint"
_OPENCV = f"{_META} (where OpenCV resizes the images; Pillow's filters differ)"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a network; None for what is unknown.

    Attributes:
      preprocessing: of its images.
      preprocessing_source: where it was found, such as "config.json".
      class_names: one per class.
      class_names_source: where they were found.
      backbone: unusual strides and dilation in a configuration.
    """

    preprocessing: BasePreprocessing | None = None
    preprocessing_source: str | None = None
    class_names: tuple[str, ...] | None = None
    class_names_source: str | None = None
    backbone: BackboneSettings | None = None


def find_metadata(
    path: str | os.PathLike, contents: Contents, model: Network, like: str | None = None
) -> Metadata:
    """Finds metadata in a checkpoint, in the JSON files next to it and by its name.

    The checkpoint's own entries take precedence. JSON files come second if the path is a folder, or
    a file that they belong to by name, such as model.safetensors. Next to other files they come
    third, after the name of a published checkpoint, and must identify the network.

    Metadata that cannot be represented and JSON files of another network are left out, with a
    warning.

    Args:
      path: of the checkpoint, a file or a folder.
      contents: of it.
      model: the network.
      like: the tag or file name of a published composite network with the same classes, if these
        are not in the checkpoint.
    """
    path = Path(path)
    search = _Search(model)
    search.in_checkpoint(contents if isinstance(contents, Mapping) else {})
    named = pretrained.recognize(path, model)
    if named and not _has_json_by_name(path):
        search.published(_FILE_NAME, named)
    if isinstance(model, Backbone):
        search.in_json(path, model)
    if named:
        search.published(_FILE_NAME, named)
    if like is not None and isinstance(model, CompositeNetwork):
        search.classes_of("the checkpoint that is named", pretrained.lookup(like))
    return search.found


class _Search:
    """Collects metadata of a network from several sources. The first value found is kept.

    Attributes:
      model: the network.
      found: the metadata so far.
    """

    def __init__(self, model: Network):
        self.model = model
        self.found = Metadata()

    def in_checkpoint(self, contents: Mapping[str, Any]) -> None:
        """Searches the entries of a checkpoint."""
        meta, args = (_entries(contents.get(key)) for key in ("meta", "args"))
        config = _attempt("configuration", _META, parse_config, meta) or {}
        self.class_names(_META, mm_class_names, meta)
        if isinstance(self.model, CompositeNetwork):
            for composite in COMPOSITES:
                if isinstance(self.model, composite.NETWORK):
                    self.preprocessing(_META, composite.read_preprocessing, config)
            return
        self.preprocessing(_META, mm_preprocessing, config)
        if self.found.preprocessing and resizes_with_opencv(config):
            self.found = dataclasses.replace(self.found, preprocessing_source=_OPENCV)
        family = type(self.model).__name__
        backbone = _attempt("backbone", _META, mm_backbone, config, family)
        self.found = dataclasses.replace(self.found, backbone=backbone)
        self.preprocessing(_ARGS, _torchvision_preprocessing, args)
        self.preprocessing(_ARGS, _official_preprocessing, args)

    def published(self, source: str, entry: pretrained.Entry) -> None:
        """Adds what is known of a published checkpoint of the network."""
        self.keep(source, "preprocessing", entry.preprocessing)
        self.classes_of(source, entry)

    def classes_of(self, source: str, entry: pretrained.Entry) -> None:
        """Adds the class names of a published composite network with as many classes."""
        if isinstance(entry, PretrainedComposite) and entry.num_classes == self.model.num_classes:
            self.keep(source, "class_names", label_sets.find(entry.data_set).class_names)

    def in_json(self, path: Path, model: Backbone) -> None:
        """Searches the JSON files next to a checkpoint, if they belong to the network."""
        folder = path if path.is_dir() else path.parent
        files = {name: _read_json(folder / name) for name in _JSON_FIELDS}
        config = files[_CONFIG]
        matches = _matches(model, config)
        if matches is None:
            matches = _has_json_by_name(path)
        if not matches:
            for name, fields in _JSON_FIELDS.items():
                if fields & files[name].keys():
                    warn_user(_why_unused(folder / name, path, config))
            return
        self.preprocessing(_CONFIG, timm_preprocessing, config)
        self.preprocessing(_PROCESSOR, transformers_preprocessing, files[_PROCESSOR])
        self.class_names(_CONFIG, timm_class_names, config)
        self.class_names(_CONFIG, transformers_class_names, config)
        stride = _timm_arguments(config).get("output_stride")
        if stride not in (None, 32) and self.found.backbone is None:
            setting = f"model_args has output_stride={stride}"
            backbone = BackboneSettings((setting,), (("output_stride", stride),))
            self.found = dataclasses.replace(self.found, backbone=backbone)

    def preprocessing(self, source: str, interpret: Callable, fields: Mapping[str, Any]) -> None:
        """Adds the result of `interpret(fields)`, if its number of channels fits the network."""
        if self.found.preprocessing is not None:
            return
        value = _attempt("preprocessing", source, interpret, fields)
        channels = self.model.in_channels
        if value is not None and value.channels != channels:
            warn_user(
                f"The preprocessing in {source} is not used: it is of {value.channels} channels, "
                f"and the network takes {channels}."
            )
        elif value is not None:
            self.keep(source, "preprocessing", value)

    def class_names(self, source: str, interpret: Callable, fields: Mapping[str, Any]) -> None:
        """Adds the result of `interpret(fields)`."""
        if self.found.class_names is None:
            self.keep(source, "class_names", _attempt("class names", source, interpret, fields))

    def keep(self, source: str, name: str, value: Any) -> None:
        """Adds a value, unless it is None or there is one already."""
        if value is not None and getattr(self.found, name) is None:
            changes = {name: value, f"{name}_source": source}
            self.found = dataclasses.replace(self.found, **changes)


# Raised by unexpected types and values. They must not prevent loading the weights.
_UNEXPECTED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def _attempt(what: str, source: str, interpret: Callable, *arguments: Any) -> Any:
    """The result of a function; None, with a warning, if it raises an error."""
    try:
        return interpret(*arguments)
    except _UNEXPECTED as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        warn_user(f"The {what} in {source} cannot be used: {kind}{error}")
        return None


def _entries(value: Any) -> Mapping[str, Any]:
    """The entries of a dictionary, or the attributes of an object such as argparse.Namespace."""
    if isinstance(value, Placeholder):
        value = value.state or value.entries
    return value if isinstance(value, Mapping) else {}


# --- JSON files --------------------------------------------------------------------------


def _read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty if there is no file, or, with a warning, no object."""
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON:,} bytes")
        loaded = json.loads(path.read_text("utf-8-sig"))  # with or without a byte order mark
        if not isinstance(loaded, dict):
            raise ValueError("it is not an object")
        return loaded
    except (OSError, ValueError, RecursionError) as error:
        warn_user(f"{path} is not used: {error}")
        return {}


def _has_json_by_name(path: Path) -> bool:
    """Whether the JSON files next to a checkpoint belong to it, by its name."""
    return path.is_dir() or _OF_FOLDER.fullmatch(path.name) is not None


def _matches(model: Backbone, config: Mapping[str, Any]) -> bool | None:
    """Whether a config.json belongs to a network; None if it identifies no network."""
    name = config.get("architecture")
    if isinstance(name, str):
        return _is_named(model, name, _timm_arguments(config))
    family = type(model).__name__.lower()
    names = [_key(config.get("model_type"))]
    architectures = config.get("architectures")
    if isinstance(architectures, list):
        # Such as ResNetForImageClassification.
        names += [re.split("for|model|backbone", _key(name))[0] for name in architectures]
    return True if family in names else None


def _is_named(model: Backbone, name: str, arguments: Mapping[str, Any]) -> bool | None:
    """Whether a name in timm with these arguments is of the network; None if unknown."""
    colour = dataclasses.replace(model.architecture, in_channels=3)
    registered = registry.name_of(model.clone(architecture=colour))
    try:
        known = registry.resolve_name(name)
    except ValueError:
        if registered is not None:
            return False
        # Such as mobilenetv2_140: a width that is not registered.
        return True if re.match(rf"{type(model).__name__.lower()}\d", _key(name)) else None
    if known == registered:
        return True
    same_family = type(registry.ARCHITECTURES[known]) is type(model.architecture)
    return same_family and bool(arguments.keys() - _NOT_OF_SIZE)


def _timm_arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = config.get("model_args")
    return arguments if isinstance(arguments, Mapping) else {}


def _key(name: Any) -> str:
    return re.sub("[^a-z0-9]", "", str(name).lower())


def _why_unused(file: Path, path: Path, config: Mapping[str, Any]) -> str:
    if kind := config.get("architecture") or config.get("model_type"):
        return f"{file} is of {brief(kind)}, another network than {path}, and is not used."
    return (
        f"{file} is not used: it does not identify the network in {path}. If it belongs to it, "
        "rename the weights to model.safetensors or pytorch_model.bin, and load their folder."
    )


# --- Training scripts --------------------------------------------------------------------


def _torchvision_preprocessing(args: Mapping[str, Any]) -> Preprocessing | None:
    """Of torchvision's references/classification/train.py."""
    if "val_crop_size" not in args or "val_resize_size" not in args:
        return None
    size, resized = (whole_number(args, f"val_{name}_size") for name in ("crop", "resize"))
    return Preprocessing(size, crop_fraction(size, resized), args.get("interpolation", "bilinear"))


def _official_preprocessing(args: Mapping[str, Any]) -> Preprocessing | None:
    """Of the official code of RepLKNet: images of 384 pixels and more are warped, not cropped."""
    if "input_size" not in args or "imagenet_default_mean_and_std" not in args:
        return None
    size = whole_number(args, "input_size")
    normalization = (
        {} if args["imagenet_default_mean_and_std"] else dict.fromkeys(("mean", "std"), (0.5,) * 3)
    )
    fraction = number(args, "crop_pct") if args.get("crop_pct") else 224 / 256
    return Preprocessing(size, None if size >= 384 else fraction, **normalization)
