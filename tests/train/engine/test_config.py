"""What a configuration must satisfy."""

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
        ("data.image_size", 0),
        ("data.reading.threads", 0),
        ("data.reading.workers", -1),
        ("epochs", 0.0),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("seed", -1),
        ("data.std", (0.0,)),
        ("data.std", ()),
        ("eval_every_epochs", 0.0),
        ("optimizer.peak_lr", 0.0),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.b2", 1.0),
        ("label_smoothing", 1.0),
        ("model.replknet.drop_path_rate", 5.0),
        ("model.mobilenet_v2.dropout_rate", -0.1),
        ("optimizer.name", "adam"),
        ("optimizer.decay_of", "biases"),
        ("optimizer.layer_decay", 0.0),
        ("optimizer.layer_decay_by", "block"),
        ("optimizer.momentum", 1.0),
        ("model.dtype", "float8"),
        ("data.eval_crop_fraction", 2.0),
        ("data.crop_scale", (0.5, 0.1)),
        ("data.crop_scale", (0.0, 1.0)),
        ("data.crop_ratio", (1.0,)),
        ("data.crop_ratio", ("a", "b")),
        ("data.crop_scale", None),
        ("data.std", ("a",)),
        ("data.mean", ("a",)),
        ("data.mean", (float("nan"),)),
        ("seed", 2**32),
        ("epochs", None),
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
    with pytest.raises(RunError, match=r"config\.distributed must name"):
        configuration.check(config)


def test_changes_are_told(tmp_path):
    config = digits.get_config()
    assert configuration.remember(config, tmp_path) == []
    assert configuration.remember(config, tmp_path) == []
    config.optimizer.peak_lr = 0.001
    assert configuration.remember(config, tmp_path) == [
        "config.optimizer.peak_lr was 0.004, now 0.001"
    ]


def test_a_damaged_record_of_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(RunError, match=r"config\.json is damaged .*: take it away"):
        configuration.remember(common.get_config(), tmp_path)


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
