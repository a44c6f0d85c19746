"""What a configuration must satisfy, what it means, and how a run remembers it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import replk_jax
from replk_jax.io.files import json_text, replace_text
from replk_jax.models.backbone import Backbone
from replk_jax.models.layers import REMAT_POLICIES
from replk_jax.models.registry import FAMILIES, family_of
from replk_jax.vision.preprocessing import Preprocessing
from train.data.transforms import RESIZING
from train.engine.optimizer import DECAY_OF, LAYER_DECAY_BY
from train.errors import RunError


def check(config: ConfigDict) -> None:
    """Raises RunError, naming field and value, where a value makes no sense.

    The fields of the model and the data check themselves where they are used.
    """
    for fields, holds, wanted in _RULES:
        for field in fields.split():
            value = _get(config, field)
            if not _holds(holds, value):
                raise RunError(f"config.{field} must be {wanted}; it is {value}.")
    if config.batch_size % config.accumulation:
        raise RunError(
            f"config.accumulation = {config.accumulation} does not divide config.batch_size = "
            f"{config.batch_size}."
        )
    if config.optimizer.warmup_epochs > config.epochs:
        raise RunError(
            f"config.optimizer.warmup_epochs = {config.optimizer.warmup_epochs} is more than "
            f"config.epochs = {config.epochs}."
        )
    distributed = config.distributed
    several = distributed.coordinator not in (None, "auto")
    if several != (distributed.num_processes > 1) or (
        not 0 <= distributed.process_id < distributed.num_processes
    ):
        raise RunError(
            "config.distributed must name coordinator, num_processes (at least 2) and process_id "
            "(0 to num_processes - 1) together; a single process, or coordinator=auto, names "
            f"neither number. It is {distributed.to_dict()}."
        )


def build_model(config: ConfigDict) -> Backbone:
    """The model that `config.model` describes; its `num_classes` follows from the data.

    Raises:
      RunError: an unknown name, or an architecture that cannot exist.
    """
    model = config.model
    try:
        section = family_of(model.name).name
        shared = {name: model[name] for name in ("in_channels", "output_stride", "remat")}
        fields = {**shared, **model[section]}
        fields = {name: value for name, value in fields.items() if value is not None}
        if fields.get("small_kernel") == 0:  # None has no place in a field that may be overridden
            fields["small_kernel"] = None
        network = replk_jax.create_model(model.name, dtype=jnp.dtype(model.dtype), **fields)
        network.check_fields()
        return network
    except (ValueError, TypeError) as error:
        raise RunError(f"config.model: {error}") from error


def build_preprocessing(data: ConfigDict, channels: int) -> Preprocessing:
    """Of the images to evaluate on, as the `data` part of a configuration says.

    Args:
      data: see configs/common.py.
      channels: that the network takes.

    Raises:
      RunError: fields that make no sense, or are not for so many channels.
    """
    if channels not in (1, 3):
        raise RunError(
            f"Images have 1 (grey) or 3 (colour) channels; config.model.in_channels is {channels}."
        )
    if not len(data.mean) == len(data.std) == channels:
        raise RunError(
            f"config.data.mean and config.data.std must have {channels} values, one for each "
            f"channel; they are {data.mean} and {data.std}."
        )
    try:
        return Preprocessing(
            image_size=data.image_size,
            crop_fraction=data.eval_crop_fraction,
            mean=data.mean,
            std=data.std,
        )
    except ValueError as error:
        raise RunError(f"config.data: {error}") from error


def remember(config: ConfigDict, workdir: Path) -> list[str]:
    """Keeps the configuration in `config.json`; returns what has changed since the last start."""
    path = workdir / "config.json"
    text = json_text(json.loads(config.to_json_best_effort()), indent=2)
    changes = []
    if path.exists():
        before, now = (flatten_dict(_parsed(t, path), sep=".") for t in (path.read_text(), text))
        changes = [
            f"config.{field} was {before.get(field)}, now {now.get(field)}"
            for field in sorted(before.keys() | now.keys())
            if before.get(field) != now.get(field)
        ]
    replace_text(path, text + "\n")
    return changes


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): take it away.") from error


def _holds(condition: Callable[[Any], bool], value: Any) -> bool:
    try:
        return condition(value)
    except TypeError:  # the value is of another type, None for example
        return False


def _range(value: tuple[float, float], top: float) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] <= top


# Fields, the condition on each, and the condition in words.
_RATES = [f"model.{family.name}.{rate}" for family in FAMILIES for rate in family.network.rates]
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "batch_size accumulation eval_batch_size log_every_steps checkpoints.every_steps "
        "checkpoints.keep data.image_size mesh.fsdp "
        "augmentation.images_per_draw",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "epochs eval_every_epochs optimizer.peak_lr optimizer.eps",
        lambda value: 0 < value < math.inf,
        "positive and finite",
    ),
    (
        "optimizer.final_lr optimizer.warmup_epochs optimizer.weight_decay "
        "data.reading.workers data.color_jitter augmentation.mixup_alpha "
        "augmentation.cutmix_alpha",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    ("seed", lambda value: 0 <= value < 2**32, "0 or more and less than 2**32"),
    (
        " ".join(
            ("label_smoothing ema_decay optimizer.b1 optimizer.b2 optimizer.momentum", *_RATES)
        ),
        lambda value: 0 <= value < 1,
        "0 or more and less than 1",
    ),
    (
        "augmentation.mix_probability augmentation.switch_probability "
        "augmentation.erasing_probability",
        lambda value: 0 <= value <= 1,
        "between 0 and 1",
    ),
    (
        "data.reading.threads",
        lambda value: value is None or value >= 1,
        "None, or at least 1",
    ),
    (
        "optimizer.clip_norm",
        lambda value: value is None or 0 < value < math.inf,
        "None, or positive and finite",
    ),
    (
        "data.resizing",
        lambda value: value in RESIZING,
        f"one of {', '.join(RESIZING)}",
    ),
    ("data.unreadable", lambda value: value in ("stop", "replace"), "stop or replace"),
    ("checkpoints.on_failure", lambda value: value in ("stop", "go_on"), "stop or go_on"),
    (
        "data.eval_crop_fraction",
        lambda value: value is None or 0 < value <= 1,
        "None, or more than 0 and at most 1",
    ),
    ("data.crop_scale", lambda value: _range(value, 1), "two shares in order, (0.08, 1.0)"),
    ("data.mean", lambda value: all(map(math.isfinite, value)), "a number for each channel"),
    ("data.std", lambda value: min(value, default=0) > 0, "positive, a value for each channel"),
    ("data.crop_ratio", lambda value: _range(value, float("inf")), "two ratios in order"),
    ("mode", lambda value: value in ("train", "eval"), "train or eval"),
    (
        "model.remat",
        lambda value: value is None or value in REMAT_POLICIES,
        f"None or one of {', '.join(REMAT_POLICIES)}",
    ),
    ("optimizer.layer_decay", lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    (
        "optimizer.layer_decay_by",
        lambda value: value in LAYER_DECAY_BY,
        f"one of {', '.join(LAYER_DECAY_BY)}",
    ),
    ("optimizer.name", lambda value: value in ("adamw", "sgd"), "adamw or sgd"),
    ("optimizer.decay_of", lambda value: value in DECAY_OF, f"one of {', '.join(DECAY_OF)}"),
    (
        "model.dtype",
        lambda value: value in ("float32", "bfloat16"),
        "float32 or bfloat16",
    ),
]


def _get(config: ConfigDict, field: str) -> Any:
    value = config
    for part in field.split("."):
        value = value[part]
    return value
