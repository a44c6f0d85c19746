"""What a configuration must satisfy."""

import pytest

from configs import common, digits
from train import config as configuration
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
