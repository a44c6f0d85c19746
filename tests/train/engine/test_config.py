"""What a configuration must satisfy."""

import json

import pytest
from absl import flags
from ml_collections import config_flags

from configs import common, digits
from replk_jax import create_model
from train.engine import config as configuration
from train.errors import RunError


@pytest.mark.parametrize("module", [common, digits])
def test_the_configurations_pass(module):
    configuration.check(module.get_config())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("eval_batch_size", -1),
        ("log_every_steps", 0),
        ("checkpoints.every_steps", 0),
        ("checkpoints.keep", 0),
        ("data.reading.threads", 0),
        ("data.reading.workers", -1),
        ("epochs", 0.0),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("seed", -1),
        ("eval_every_epochs", 0.0),
        ("optimizer.peak_lr", 0.0),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.b2", 1.0),
        ("model.replknet.drop_path_rate", 5.0),
        ("model.mobilenet_v2.dropout_rate", -0.1),
        ("optimizer.name", "adam"),
        ("optimizer.decay_of", "biases"),
        ("optimizer.layer_decay", 0.0),
        ("optimizer.layer_decay_by", "block"),
        ("optimizer.momentum", 1.0),
        ("model.dtype", "float8"),
        ("seed", 2**32),
        ("epochs", None),
        ("steps", 0),
        ("eval_every_epochs", None),
        ("eval_every_steps", 0),
        ("optimizer.warmup_epochs", -1.0),
        ("optimizer.warmup_epochs", None),
        ("optimizer.warmup_steps", -1),
        ("optimizer.warmup_from", 1.5),
        ("optimizer.warmup", "exponential"),
        ("optimizer.schedule", "linear"),
        ("optimizer.power", 0.0),
        ("optimizer.milestones", (33, 27)),
        ("optimizer.milestones", (27, 27)),
        ("optimizer.milestones", (0, 27)),
        ("optimizer.milestones", ("a",)),
        ("optimizer.milestone_factor", 0.0),
        ("optimizer.head_lr_factor", 0.0),
        ("freeze.stages", -2),
        ("data.unreadable", "skip"),
        ("checkpoints.on_failure", "wait"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(field, value):
    config = digits.get_config()
    with config.unlocked():
        part = config
        *parents, last = field.split(".")
        for parent in parents:
            part = part[parent]
        part[last] = value
    with pytest.raises(RunError, match=f"config.{field} must be") as caught:
        configuration.check(config)
    assert str(value) in str(caught.value)


def test_warm_up_longer_than_the_run():
    config = digits.get_config()
    config.optimizer.warmup_epochs = 31.0
    with pytest.raises(RunError, match="more than"):
        configuration.check(config)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # ADE20K in mmsegmentation: all lengths in iterations.
        (
            {"epochs": None, "steps": 160_000, "eval_every_epochs": None,
             "eval_every_steps": 2000, "optimizer.warmup_epochs": None,
             "optimizer.warmup_steps": 1500},
            (160_000, 1500, 2000, ()),
        ),
        # Cascade in mmdetection: epochs, but for the warm-up.
        (
            {"epochs": 36.0, "optimizer.warmup_epochs": None, "optimizer.warmup_steps": 500,
             "optimizer.milestones": (27, 33)},
            (36 * 300, 500, 300, (8100, 9900)),
        ),
        ({"epochs": 2.5, "optimizer.warmup_epochs": 0.5}, (750, 150, 300, ())),
        (
            {"epochs": None, "steps": 90, "optimizer.warmup_epochs": 0.1,
             "optimizer.milestones": (50, 80), "eval_every_epochs": 0.001},
            (90, 30, 1, (50, 80)),
        ),
    ],
)  # fmt: skip
def test_lengths_in_epochs_and_in_steps(fields, expected):
    """Of epochs of 300 steps."""
    config = common.get_config()
    config.update_from_flattened_dict(fields)
    configuration.check(config)
    length = configuration.run_length(config, 300)
    assert (length.total, length.warmup, length.evaluation, length.milestones) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 100, r"config\.epochs = 30\.0 and config\.steps = 100 are both set"),
        ("eval_every_steps", 5, r"config\.eval_every_epochs = 2\.0 and .* are both set"),
        ("optimizer.warmup_steps", 5, r"config\.optimizer\.warmup_epochs = 3\.0 and .* both set"),
        ("optimizer.schedule", "step", r"needs config\.optimizer\.milestones"),
    ],
)
def test_fields_that_contradict_each_other(field, value, message):
    config = digits.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(RunError, match=message):
        configuration.check(config)


def test_warm_up_in_steps_longer_than_the_run_in_epochs():
    config = digits.get_config()
    config.update_from_flattened_dict(
        {"optimizer.warmup_epochs": None, "optimizer.warmup_steps": 301}
    )
    configuration.check(config)
    assert configuration.run_length(config, 11).warmup == 301
    with pytest.raises(RunError, match="301 steps, is longer than the run of 300 steps"):
        configuration.run_length(config, 10)


def test_the_schedule_of_a_configuration():
    """Cascade's of mmdetection, at the start, in the warm-up, and after each milestone."""
    config = common.get_config()
    config.epochs = 36.0
    config.optimizer.update(
        schedule="step", peak_lr=4e-4, milestones=(27, 33), warmup_from=1e-3,
        warmup_epochs=None, warmup_steps=500,
    )  # fmt: skip
    schedule = configuration.build_schedule(config.optimizer, configuration.run_length(config, 300))
    expected = {0: 4e-7, 100: 8.032e-5, 500: 4e-4, 8099: 4e-4, 8100: 4e-5, 9900: 4e-6}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    ("coordinator", "processes", "process"),
    [
        (None, 2, 0),
        (None, 1, 1),
        ("host:1", 1, 0),
        ("host:1", 2, 2),
        ("host:1", 2, -1),
        ("auto", 2, 0),
    ],
)
def test_processes_that_are_half_described(coordinator, processes, process):
    config = digits.get_config()
    config.distributed.coordinator = coordinator
    config.distributed.num_processes = processes
    config.distributed.process_id = process
    with pytest.raises(RunError, match=r"config\.distributed: set all"):
        configuration.check(config)


def test_changes_are_told(tmp_path):
    config = digits.get_config()
    assert configuration.store(config, tmp_path) == []
    assert configuration.store(config, tmp_path) == []
    config.optimizer.peak_lr = 0.001
    assert configuration.store(config, tmp_path) == [
        "config.optimizer.peak_lr was 0.004, now 0.001"
    ]


def test_a_damaged_record_of_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(RunError, match=r"config\.json is damaged .*: remove it"):
        configuration.store(common.get_config(), tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        ("resnet50", {"output_stride": 8}, create_model("resnet_50", output_stride=8)),
        (
            "resnet50",
            {"resnet.stride_in_1x1": True, "resnet.layers": (1, 1, 1, 1)},
            create_model("resnet_50", stride_in_1x1=True, layers=(1, 1, 1, 1)),
        ),
        ("ResNet-101", {"resnet.block": "basic"}, create_model("resnet_101", block="basic")),
        ("RepVGG-A0", {"repvgg.groups": 2}, create_model("repvgg_a0", groups=2)),
        (
            "repvgg_a0",
            {"repvgg.layers": (2,), "repvgg.channels": (4, 4), "repvgg.groups": (1, 2, 1)},
            create_model("repvgg_a0", layers=(2,), channels=(4, 4), groups=(1, 2, 1)),
        ),
        ("mobilenetv2_100", {"mobilenet_v2.dilation": 4}, create_model("mobilenet_v2_dilated_4")),
    ],
)
def test_the_network_of_a_configuration(name, fields, wanted):
    """The sections of other families do not count."""
    config = common.get_config()
    config.model.name = name
    config.update_from_flattened_dict({f"model.{field}": v for field, v in fields.items()})
    assert configuration.build_model(config) == wanted


@pytest.mark.parametrize(("text", "groups"), [("4", 4), ("(1, 2, 1)", (1, 2, 1))])
def test_a_number_or_a_tuple_on_the_command_line(text, groups, monkeypatch):
    arguments = ["program", f"--config={common.__file__}", f"--config.model.repvgg.groups={text}"]
    monkeypatch.setattr("sys.argv", arguments)  # where ml_collections finds the overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    assert values.config.model.repvgg.groups == groups


def test_a_model_that_makes_no_sense():
    config = common.get_config()
    config.model.output_stride = 12
    with pytest.raises(RunError, match=r"config\.model: output_stride must be"):
        configuration.build_model(config)


def test_a_file_of_an_earlier_version_needs_no_change(capsys):
    """Old names and values are translated, and the new ones said."""
    config = digits.get_config()
    with config.unlocked():
        config.augmentation.images_per_draw = 8
        config.checkpoints.on_failure = "go_on"
    config.lock()
    configuration.check(config)
    assert config.augmentation.mixup_group_size == 8
    assert "images_per_draw" not in config.augmentation
    assert config.checkpoints.on_failure == "continue"
    said = capsys.readouterr().err
    assert "config.augmentation.images_per_draw is now called config.augmentation.mixup" in said
    assert "config.checkpoints.on_failure = go_on is now called continue" in said


def test_a_run_of_an_earlier_version_has_no_changes(tmp_path):
    """Of its configuration all names and fields that were added since are translated."""
    config = digits.get_config()
    configuration.store(config, tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    for field in configuration.ADDED:
        *sections, name = field.split(".")
        section = stored
        for part in sections:
            section = section[part]
        del section[name]
    del stored["freeze"]
    stored["augmentation"]["images_per_draw"] = stored["augmentation"].pop("mixup_group_size")
    stored["checkpoints"]["on_failure"] = "stop"
    path.write_text(json.dumps(stored))
    assert configuration.store(config, tmp_path) == []
    path.write_text(json.dumps(stored | {"seed": 5}))
    assert configuration.store(config, tmp_path) == ["config.seed was 5, now 0"]


@pytest.mark.parametrize(("milestones", "last"), [((1, 3), 138), ((2.5, 3.5), 161)])
def test_milestones_after_the_run(milestones, last):
    config = digits.get_config()
    config.epochs, config.optimizer.warmup_epochs = 3.0, 0.0
    config.optimizer.schedule, config.optimizer.milestones = "step", milestones
    with pytest.raises(RunError, match=f"ends after 138 steps, before step {last}"):
        configuration.run_length(config, 46)
