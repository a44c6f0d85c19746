"""How images are prepared, and what the classes are called, as other libraries save it.

timm and transformers write it in JSON files next to the weights; mmengine, torchvision's training
script and the official code of RepLKNet save it in the checkpoint, with the weights.
"""

import ast
import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from replk_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from replk_jax.torch_import.tensors import Placeholder

_LARGEST_JSON = 1 << 24  # bytes; a config.json with the names of 21,841 classes has 2 MB
_LONGEST_CONFIG = 1 << 20  # characters of mmengine's


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of a network besides its weights.

    Attributes:
      preprocessing: of its images, if it is known.
      preprocessing_source: where it was found, such as "config.json".
      class_names: one for each class, if they are known.
      class_names_source: where they were found.
      architecture: timm's name of the network, if a file of timm says it.
    """

    preprocessing: Preprocessing | None = None
    preprocessing_source: str | None = None
    class_names: tuple[str, ...] | None = None
    class_names_source: str | None = None
    architecture: str | None = None


def find_metadata(path: str | os.PathLike, contents: Any) -> Metadata:
    """What a checkpoint and the files next to it say of a network's images and classes.

    What cannot be understood is reported by a warning and left out.

    Args:
      path: of the checkpoint, a file or a folder.
      contents: of it, as `read` gives them.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = Metadata()
    config = _json(folder / "config.json")
    source = "config.json"
    found = _completed(found, source, config, _timm_preprocessing, _timm_class_names)
    found = _completed(found, source, config, None, _transformers_class_names)
    processor = _json(folder / "preprocessor_config.json")
    found = _completed(
        found, "preprocessor_config.json", processor, _transformers_preprocessing, None
    )
    if isinstance(config.get("architecture"), str):
        found = dataclasses.replace(found, architecture=config["architecture"])

    contents = contents if isinstance(contents, Mapping) else {}
    meta = _fields(contents.get("meta"))
    found = _completed(found, "its meta entry", meta, _mm_preprocessing, _mm_class_names)
    args = _fields(contents.get("args"))
    for preprocessing in (_torchvision_preprocessing, _official_preprocessing):
        found = _completed(found, "its args entry", args, preprocessing, None)
    return found


# What reading fields of unexpected types and values raises, and parsing text that is not Python.
_NOT_UNDERSTOOD = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    SyntaxError, RecursionError, MemoryError,
)  # fmt: skip


def _completed(
    found: Metadata,
    source: str,
    fields: Mapping[str, Any],
    preprocessing: Callable[[Mapping[str, Any]], Preprocessing | None] | None,
    class_names: Callable[[Mapping[str, Any]], tuple[str, ...] | None] | None,
) -> Metadata:
    """What has been found, and what one source adds to it."""
    for attribute, interpret in (("preprocessing", preprocessing), ("class_names", class_names)):
        if interpret is None or not fields or getattr(found, attribute) is not None:
            continue
        try:
            value = interpret(fields)
        except _NOT_UNDERSTOOD as error:
            what = attribute.replace("_", " ")
            reason = str(error) or type(error).__name__
            warnings.warn(f"The {what} in {source} cannot be used: {reason}", stacklevel=4)
            continue
        if value is not None:
            found = dataclasses.replace(found, **{attribute: value, f"{attribute}_source": source})
    return found


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; an empty one if there is none that can be understood."""
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON:,} bytes")
        loaded = json.loads(path.read_text("utf-8"))
        if not isinstance(loaded, dict):
            raise ValueError("it is not an object")
        return loaded
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path} is not used: {error}", stacklevel=4)
        return {}


def _fields(value: Any) -> Mapping[str, Any]:
    """The entries of a dictionary, or the attributes of an object such as argparse.Namespace."""
    if isinstance(value, Placeholder):
        value = value.state or value.entries
    return value if isinstance(value, Mapping) else {}


# --- timm --------------------------------------------------------------------------------


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    # Before version 0.8 the fields were at the top.
    fields = config.get("pretrained_cfg", config)
    if "architecture" not in config or "input_size" not in fields:
        return None
    _, height, width = fields["input_size"]
    if height != width:
        raise ValueError(f"the images are {height} x {width}, and only squares are supported")
    squashed = fields.get("crop_mode") == "squash"
    return Preprocessing(
        height,
        crop_fraction=None if squashed else fields.get("crop_pct") or 0.875,
        interpolation=fields.get("interpolation") or "bicubic",
        mean=fields.get("mean") or IMAGENET_MEAN,
        std=fields.get("std") or IMAGENET_STD,
    )


def _timm_class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    fields = config.get("pretrained_cfg")
    fields = fields if isinstance(fields, Mapping) else {}
    labels = config.get("label_names") or fields.get("label_names")
    if labels is None or "architecture" not in config:
        return None
    descriptions = config.get("label_descriptions") or {}
    return tuple(str(descriptions.get(label, label)) for label in _listed(labels))


# --- transformers ------------------------------------------------------------------------


def _transformers_class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if not labels:
        return None
    names = tuple(map(str, _listed(labels)))
    # What transformers writes where no names were given.
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _transformers_preprocessing(fields: Mapping[str, Any]) -> Preprocessing | None:
    if "size" not in fields and "crop_size" not in fields:
        return None
    if not math.isclose(fields.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise ValueError("its pixels are not scaled to [0, 1]")
    size, crop_fraction = _transformers_size(fields)
    normalized = fields.get("do_normalize", True)
    return Preprocessing(
        size,
        crop_fraction=crop_fraction,
        interpolation=Image.Resampling(fields.get("resample", 3)).name.lower(),
        mean=fields.get("image_mean", IMAGENET_MEAN) if normalized else (0.0,) * 3,
        std=fields.get("image_std", IMAGENET_STD) if normalized else (1.0,) * 3,
    )


def _transformers_size(fields: Mapping[str, Any]) -> tuple[int, float | None]:
    """Image size, and crop fraction or None for images that are warped."""
    shorter, exact = _sides(fields["size"])
    if fields.get("crop_pct"):  # ConvNeXt's: from 384 on without a crop
        return shorter, None if shorter >= 384 else fields["crop_pct"]
    if fields.get("do_center_crop"):
        crop, _ = _sides(fields["crop_size"])
        return crop, _crop_fraction(crop, shorter)
    if not exact:
        raise ValueError("images keep their aspect ratio and are not cropped to a square")
    return shorter, None


def _sides(size: Any) -> tuple[int, bool]:
    """A side in pixels, and whether both sides get it or only the shorter one."""
    if isinstance(size, int):
        return size, True
    if "shortest_edge" in size:
        return size["shortest_edge"], False
    if size["height"] != size["width"]:
        raise ValueError(f"the images are {size['height']} x {size['width']}, not square")
    return size["height"], True


# --- mmengine and mmcv -------------------------------------------------------------------


def _mm_class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    data_set = _fields(meta.get("dataset_meta"))
    names = data_set.get("classes") or data_set.get("CLASSES") or meta.get("CLASSES")
    return tuple(map(str, names)) if names else None


def _mm_preprocessing(meta: Mapping[str, Any]) -> Preprocessing | None:
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        return None
    if len(text) > _LONGEST_CONFIG:
        raise ValueError(f"the configuration has more than {_LONGEST_CONFIG:,} characters")
    config = _python_literals(text)
    steps = _test_pipeline(config)
    resized = _first_step(steps, "Resize", "ResizeEdge")
    normalization = _normalization(config, steps)
    if resized is None or normalization is None:
        return None
    crop = _first_step(steps, "CenterCrop")
    size = _mm_side(resized.get("scale", resized.get("size")))
    if crop is None:
        image_size, crop_fraction = size, None
    else:
        image_size = _mm_side(crop["crop_size"])
        crop_fraction = _crop_fraction(image_size, size)
    mean, std = normalization
    return Preprocessing(
        image_size,
        crop_fraction=crop_fraction,
        interpolation=resized.get("interpolation", "bilinear"),
        mean=mean,
        std=std,
    )


def _normalization(
    config: Mapping[str, Any], steps: list[Mapping[str, Any]]
) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation for values in [0, 1]; the configuration has them for [0, 255].

    Raises:
      ValueError: of channels in the order blue, green, red.
    """
    model = config.get("model") or {}
    normalization = (
        model.get("data_preprocessor")
        or config.get("data_preprocessor")
        or _first_step(steps, "Normalize")
    )
    if not normalization or "mean" not in normalization:
        return None
    if not normalization.get("to_rgb", normalization.get("bgr_to_rgb", False)):
        raise ValueError("the network takes channels in the order blue, green, red")
    return tuple([value / 255 for value in normalization[name]] for name in ("mean", "std"))


def _test_pipeline(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "test_pipeline" in config:
        steps = config["test_pipeline"]
    else:
        loader = config.get("test_dataloader") or config.get("data", {}).get("test", {})
        steps = loader.get("dataset", loader).get("pipeline")
    return [step for step in steps or () if isinstance(step, Mapping)]


def _first_step(steps: list[Mapping[str, Any]], *types: str) -> Mapping[str, Any] | None:
    return next((step for step in steps if step.get("type") in types), None)


def _mm_side(size: Any) -> int:
    """A side in pixels: of (256, -1) the shorter one's."""
    if isinstance(size, int):
        return size
    first, second = size
    if second not in (first, -1):
        raise ValueError(f"the images are {first} x {second}, and only squares are supported")
    return first


def _python_literals(text: str) -> dict[str, Any]:
    """The variables that a Python file defines by literals and `dict(...)`, without running it."""
    values: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _literal(value, values)
    return values


def _literal(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """The value of an expression; None where it is not a literal."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values.get(name)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, values) for item in items]
        case ast.Dict(keys=keys, values=entries):
            pairs = zip(keys, entries, strict=True)
            return {_literal(k, values): _literal(v, values) for k, v in pairs if k is not None}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {k.arg: _literal(k.value, values) for k in keywords if k.arg is not None}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


# --- Training scripts --------------------------------------------------------------------


def _torchvision_preprocessing(args: Mapping[str, Any]) -> Preprocessing | None:
    """Of torchvision's references/classification/train.py."""
    if "val_crop_size" not in args or "val_resize_size" not in args:
        return None
    size = args["val_crop_size"]
    crop_fraction = _crop_fraction(size, args["val_resize_size"])
    return Preprocessing(size, crop_fraction, args.get("interpolation", "bilinear"))


def _official_preprocessing(args: Mapping[str, Any]) -> Preprocessing | None:
    """Of the official code of RepLKNet: images of 384 pixels and more are warped, not cropped."""
    if "input_size" not in args or "imagenet_default_mean_and_std" not in args:
        return None
    size = args["input_size"]
    normalization = (
        {} if args["imagenet_default_mean_and_std"] else dict.fromkeys(("mean", "std"), (0.5,) * 3)
    )
    crop_fraction = None if size >= 384 else args.get("crop_pct") or 224 / 256
    return Preprocessing(size, crop_fraction, **normalization)


# --- Values ------------------------------------------------------------------------------


def _crop_fraction(size: int, resized: int) -> float:
    """The fraction that `Preprocessing` resizes to exactly so many pixels by."""
    fraction = size / resized
    while int(size / fraction) < resized:  # division has rounded the wrong way
        fraction = math.nextafter(fraction, 0)
    return fraction


def _listed(labels: Any) -> Iterator[Any]:
    """The labels in order, of a list or of a dictionary by index."""
    if isinstance(labels, Mapping):
        by_index = {int(index): label for index, label in labels.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("the indices of the classes are not 0, 1, 2 ...")
        return (by_index[index] for index in sorted(by_index))
    return iter(labels)
