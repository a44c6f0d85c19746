"""Checks a configuration, builds the parts of the engine from it, and stores it in the workdir."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import replk_jax
from replk_jax.io.files import json_text, replace_text
from replk_jax.models.backbone import Backbone
from replk_jax.models.layers import REMAT_POLICIES
from replk_jax.models.network import Network
from replk_jax.models.registry import FAMILIES, family_of
from train.engine.freezing import Freezing
from train.engine.optimizer import (
    DECAY_OF,
    LAYER_DECAY_BY,
    OPTIMIZERS,
    layer_lr_factor,
    make_optimizer,
)
from train.engine.regularization import Penalty, custom_l2_penalty
from train.engine.schedules import SCHEDULES, WARMUPS, Schedule, make_schedule
from train.errors import RunError
from train.reporting.console import warn


class Rule(NamedTuple):
    """A condition on the values of some fields.

    Attributes:
      fields: their names, separated by spaces: "optimizer.b1 optimizer.b2".
      condition: returns True for a valid value, and returns False or raises TypeError otherwise.
      expected: the condition in words, to follow "must be".
    """

    fields: str
    condition: Callable[[Any], bool]
    expected: str


def check(config: ConfigDict) -> None:
    """Checks the fields that all tasks have, and replaces old names of fields and values.

    Most fields of the model and of the data are checked where they are used.

    Raises:
      RunError: an invalid value.
    """
    _use_new_names(config)
    check_fields(config, RUN_RULES)
    for epochs, steps in _LENGTHS:
        _expect_one_of(config, epochs, steps)
    _expect_warmup_within_run(config)
    _expect_milestones(config)
    _expect_whole_micro_batches(config)
    _expect_processes(config.distributed)


def check_fields(config: ConfigDict, rules: Iterable[Rule]) -> None:
    """Raises RunError, naming field and value, for the first value that breaks a rule."""
    for fields, condition, expected in rules:
        for field in fields.split():
            value = _get(config, field)
            if not _holds(condition, value):
                raise RunError(f"config.{field} must be {expected}; it is {value}.")


def one_of(names: Iterable[str]) -> tuple[Callable[[Any], bool], str]:
    """`condition` and `expected` of a rule for fields whose value is one of these names."""
    names = tuple(names)
    words = " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
    return names.__contains__, words


@dataclasses.dataclass(frozen=True)
class RunLength:
    """Lengths in steps.

    Attributes:
      total: of the run.
      warmup: of the warm-up.
      evaluation: from one evaluation to the next.
      milestones: of the schedule "step".
    """

    total: int
    warmup: int
    evaluation: int
    milestones: tuple[int, ...]


def run_length(config: ConfigDict, steps_per_epoch: int) -> RunLength:
    """Converts the lengths of a configuration, in epochs or in steps, to steps.

    Args:
      config: see configs/common.py.
      steps_per_epoch: of the training split.

    Raises:
      RunError: the warm-up is longer than the run, or a milestone is not in it.
    """

    def in_steps(epochs: float | None, steps: int | None) -> int:
        if epochs is not None:
            return round(epochs * steps_per_epoch)
        assert steps is not None  # `check` requires one of the two
        return steps

    recipe = config.optimizer
    per_milestone = 1 if config.epochs is None else steps_per_epoch
    length = RunLength(
        total=max(1, in_steps(config.epochs, config.steps)),
        warmup=in_steps(recipe.warmup_epochs, recipe.warmup_steps),
        evaluation=max(1, in_steps(config.eval_every_epochs, config.eval_every_steps)),
        milestones=tuple(round(milestone * per_milestone) for milestone in recipe.milestones),
    )
    if length.warmup > length.total:
        raise RunError(
            f"The warm-up of config.optimizer, {length.warmup} steps, is longer than the run of "
            f"{length.total} steps."
        )
    beyond = [step for step in length.milestones if step >= length.total]
    if recipe.schedule == "step" and beyond:
        raise RunError(
            f"config.optimizer.milestones = {tuple(recipe.milestones)}: the run ends after "
            f"{length.total} steps, before step {beyond[0]}."
        )
    return length


def build_schedule(recipe: ConfigDict, length: RunLength) -> Schedule:
    """The learning rate schedule of `config.optimizer`."""
    return make_schedule(
        recipe.schedule,
        peak_lr=recipe.peak_lr,
        total_steps=length.total,
        final_lr=recipe.final_lr,
        power=recipe.power,
        milestones=length.milestones,
        milestone_factor=recipe.milestone_factor,
        warmup=recipe.warmup,
        warmup_steps=length.warmup,
        warmup_from=recipe.warmup_from,
    )


def build_freezing(config: ConfigDict, network: Network) -> Freezing:
    """The frozen parts of the network, from `config.freeze`.

    Raises:
      RunError: the network has fewer stages.
    """
    return Freezing(network, **config.freeze)


def build_optimizer(
    recipe: ConfigDict, schedule: Schedule, freezing: Freezing
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, for the parameters that are not frozen.

    Args:
      recipe: `config.optimizer`.
      schedule: from `build_schedule`.
      freezing: from `build_freezing`.
    """
    factor = None
    if (recipe.layer_decay, recipe.head_lr_factor) != (1, 1):
        factor = layer_lr_factor(
            freezing.network, recipe.layer_decay, recipe.layer_decay_by, recipe.head_lr_factor
        )
    optimizer = make_optimizer(
        recipe.name,
        schedule,
        weight_decay=recipe.weight_decay,
        decay_of=recipe.decay_of,
        custom_l2=recipe.custom_l2,
        clip_norm=recipe.clip_norm,
        lr_factor=factor,
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )
    return freezing.optimizer(optimizer)


def build_penalty(recipe: ConfigDict) -> Penalty | None:
    """The term that `config.optimizer` adds to the loss, or None."""
    return custom_l2_penalty(recipe.weight_decay) if recipe.custom_l2 else None


def build_model(config: ConfigDict) -> Backbone:
    """The model of `config.model`, with the default `num_classes`.

    Raises:
      RunError: an unknown name, or an invalid architecture.
    """
    model = config.model
    try:
        network = replk_jax.create_model(
            model.name, dtype=jnp.dtype(model.dtype), **model_fields(model)
        )
        network.check_fields()
        return network
    except (ValueError, TypeError) as error:
        raise RunError(f"config.model: {error}") from error


def model_fields(model: ConfigDict) -> dict[str, Any]:
    """The arguments of `create_model` that the section `config.model` sets, except the dtype.

    Raises:
      ValueError: an unknown name.
    """
    section = family_of(model.name).name
    shared = {name: model[name] for name in ("in_channels", "output_stride", "remat")}
    fields = {**shared, **model[section]}
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("small_kernel") == 0:  # in a configuration, None is the named model's value
        fields["small_kernel"] = None
    return fields


def store(config: ConfigDict, workdir: Path) -> list[str]:
    """Writes the configuration to `config.json`; returns its changes since the last start."""
    path = workdir / "config.json"
    text = json_text(json.loads(config.to_json_best_effort()), indent=2)
    changes = []
    if path.exists():
        before = in_this_version(flatten_dict(_parsed(path.read_text(), path), sep="."))
        now = flatten_dict(json.loads(text), sep=".")
        changes = [
            f"config.{field} was {before.get(field)}, now {now.get(field)}"
            for field in sorted(before.keys() | now.keys())
            if before.get(field) != now.get(field)
        ]
    replace_text(path, text + "\n")
    return changes


def in_this_version(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration as this version would store it.

    Args:
      fields: from `config.json`, by path.
    """
    renamed = {RENAMED.get(field, field): value for field, value in fields.items()}
    for field, values in RENAMED_VALUES.items():
        if renamed.get(field) in values:
            renamed[field] = values[renamed[field]]
    return {**ADDED, **renamed}


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): remove it.") from error


# Renamed fields, by their old names.
RENAMED = {"augmentation.images_per_draw": "augmentation.mixup_group_size"}
# Values that were renamed, by field.
RENAMED_VALUES = {"checkpoints.on_failure": {"go_on": "continue"}}
# Fields that were added, with what runs did without them, as JSON has it.
ADDED = {
    "task": "classification",
    "steps": None,
    "eval_every_steps": None,
    "data.more_eval_splits": [],
    "freeze.batch_norm": False,
    "freeze.stages": -1,
    "optimizer.head_lr_factor": 1.0,
    "optimizer.milestone_factor": 0.1,
    "optimizer.milestones": [],
    "optimizer.power": 1.0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": "linear",
    "optimizer.warmup_from": 0.0,
    "optimizer.warmup_steps": None,
}

# Lengths: a field in epochs and one in steps. Exactly one of the two must be set.
_LENGTHS = (
    ("epochs", "steps"),
    ("eval_every_epochs", "eval_every_steps"),
    ("optimizer.warmup_epochs", "optimizer.warmup_steps"),
)


def _use_new_names(config: ConfigDict) -> None:
    """Renames what a configuration file of an earlier version has set. Warns."""
    with config.unlocked():
        for old, new in RENAMED.items():
            section, name = _parent(config, old)
            if name in section:
                warn(f"config.{old} is now called config.{new}.")
                new_section, new_name = _parent(config, new)
                new_section[new_name] = section[name]
                del section[name]
        for field, values in RENAMED_VALUES.items():
            section, name = _parent(config, field)
            if section[name] in values:
                warn(f"config.{field} = {section[name]} is now called {values[section[name]]}.")
                section[name] = values[section[name]]


def _parent(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """The section of a field, empty if the task has no such section, and the field's name in it."""
    section, _, name = field.rpartition(".")
    return (_get(config, section) if section in config else ConfigDict()), name


def _expect_one_of(config: ConfigDict, epochs: str, steps: str) -> None:
    values = {field: _get(config, field) for field in (epochs, steps)}
    given = [f"config.{field} = {value}" for field, value in values.items() if value is not None]
    if len(given) == 2:
        raise RunError(f"{' and '.join(given)} are both set: set one of them to None.")
    if not given:
        raise RunError(f"config.{epochs} must be set, or config.{steps}; both are None.")


def _expect_warmup_within_run(config: ConfigDict) -> None:
    """Compares lengths in the same unit; `run_length` compares the others."""
    for unit in ("epochs", "steps"):
        warmup, run = config.optimizer[f"warmup_{unit}"], config[unit]
        if None not in (warmup, run) and warmup > run:
            raise RunError(
                f"config.optimizer.warmup_{unit} = {warmup} is more than config.{unit} = {run}."
            )


def _expect_milestones(config: ConfigDict) -> None:
    if config.optimizer.schedule == "step" and not config.optimizer.milestones:
        raise RunError(
            "config.optimizer.schedule = step needs config.optimizer.milestones, (27, 33) for "
            "example."
        )


def _expect_whole_micro_batches(config: ConfigDict) -> None:
    if config.batch_size % config.accumulation:
        raise RunError(
            f"config.accumulation = {config.accumulation} does not divide config.batch_size = "
            f"{config.batch_size}."
        )


def _expect_processes(distributed: ConfigDict) -> None:
    several = distributed.coordinator not in (None, "auto")
    if several != (distributed.num_processes > 1) or (
        not 0 <= distributed.process_id < distributed.num_processes
    ):
        raise RunError(
            "config.distributed: set all of coordinator, num_processes (at least 2) and process_id "
            "(0 to num_processes - 1). For a single process, or with coordinator=auto, set neither "
            f"number. It is {distributed.to_dict()}."
        )


def _holds(condition: Callable[[Any], bool], value: Any) -> bool:
    try:
        return condition(value)
    except TypeError:  # a value of another type, None for example
        return False


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_rising(values: tuple[float, ...]) -> bool:
    """Whether the values are positive and finite, and each is larger than the one before it."""
    return all(map(_is_positive, values)) and list(values) == sorted(set(values))


def _get(config: ConfigDict, field: str) -> Any:
    value = config
    for part in field.split("."):
        value = value[part]
    return value


# The rates of dropout and stochastic depth, in the sections of the families.
_RATES = [f"model.{family.name}.{rate}" for family in FAMILIES for rate in family.network.rates]

RUN_RULES = (
    Rule(
        "batch_size accumulation eval_batch_size log_every_steps checkpoints.every_steps "
        "checkpoints.keep mesh.fsdp",
        lambda value: value >= 1,
        "at least 1",
    ),
    Rule(
        "steps eval_every_steps data.reading.threads",
        lambda value: value is None or value >= 1,
        "at least 1, or None",
    ),
    Rule(
        "optimizer.peak_lr optimizer.eps optimizer.power optimizer.head_lr_factor",
        _is_positive,
        "positive and finite",
    ),
    Rule(
        "epochs eval_every_epochs optimizer.clip_norm",
        lambda value: value is None or _is_positive(value),
        "positive and finite, or None",
    ),
    Rule(
        "optimizer.final_lr optimizer.weight_decay data.reading.workers",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    Rule(
        "optimizer.warmup_epochs optimizer.warmup_steps",
        lambda value: value is None or 0 <= value < math.inf,
        "0 or more, or None",
    ),
    Rule("seed", lambda value: 0 <= value < 2**32, "0 or more and less than 2**32"),
    Rule(
        " ".join(("ema_decay optimizer.b1 optimizer.b2 optimizer.momentum", *_RATES)),
        lambda value: 0 <= value < 1,
        "0 or more and less than 1",
    ),
    Rule("optimizer.warmup_from", lambda value: 0 <= value <= 1, "between 0 and 1"),
    Rule(
        "optimizer.layer_decay optimizer.milestone_factor",
        lambda value: 0 < value <= 1,
        "more than 0 and at most 1",
    ),
    Rule("optimizer.milestones", _is_rising, "positive and in rising order, (27, 33) for example"),
    Rule("optimizer.name", *one_of(OPTIMIZERS)),
    Rule("optimizer.schedule", *one_of(SCHEDULES)),
    Rule("optimizer.warmup", *one_of(WARMUPS)),
    Rule("optimizer.decay_of", *one_of(DECAY_OF)),
    Rule("optimizer.layer_decay_by", *one_of(LAYER_DECAY_BY)),
    Rule("freeze.stages", lambda value: value >= -1, "-1 or more"),
    Rule("data.unreadable", *one_of(("stop", "replace"))),
    Rule("checkpoints.on_failure", *one_of(("stop", "continue"))),
    Rule("mode", *one_of(("train", "eval"))),
    Rule("model.dtype", *one_of(("float32", "bfloat16"))),
    Rule(
        "model.remat",
        lambda value: value is None or value in REMAT_POLICIES,
        f"None or one of {', '.join(REMAT_POLICIES)}",
    ),
)
