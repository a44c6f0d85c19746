"""Fields of a configuration on the command line."""

import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict, FieldReference

from configs import common
from tests.train.conftest import REPOSITORY

# Parses each list of arguments on standard input in a fork of its own, since absl's flags are
# global, and prints the configurations, or the errors.
PARSE = """
import json, os, sys
from train.engine import config_flags as command_line

def parse(arguments):
    sys.argv = ["program", *arguments]
    try:
        command_line.parse(sys.argv)
    except SystemExit as stop:
        return stop.code
    return command_line.CONFIG.value.to_dict()

results = []
for arguments in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        with os.fdopen(write, "w") as file:
            json.dump(parse(arguments), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        results.append(json.load(file))
    os.wait()
print(json.dumps(results))
"""
CONFIG = "--config=configs/digits.py"
VALUES = {int: 3, float: 0.5, str: "text", tuple: [3, 5], bool: True, object: 2}


def optional_fields(config, prefix=""):
    """The fields that may be None, by name, with the type of their values."""
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from optional_fields(value, f"{prefix}{name}.")
        elif isinstance(value, FieldReference):
            yield f"{prefix}{name}", value.get_type()


OPTIONAL = dict(optional_fields(common.get_config()))


def parse(*commands, home="/home"):
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def get(config, field):
    for part in field.split("."):
        config = config[part]
    return config


def test_every_optional_field_takes_a_value_and_none():
    assert {
        "init_from",
        "optimizer.clip_norm",
        "model.replknet.layers",
        "epochs",
    } <= OPTIONAL.keys()
    values = {field: VALUES[kind] for field, kind in OPTIONAL.items()}
    texts = {
        field: repr(tuple(value)) if isinstance(value, list) else str(value)
        for field, value in values.items()
    }
    set_all = [f"--config.{field}={text}" for field, text in texts.items()]
    unset_all = [f"--config.{field}=None" for field in OPTIONAL]
    unset_apart = [part for field in OPTIONAL for part in (f"--config.{field}", "None")]
    given, unset, apart, given_last = parse(
        [CONFIG, *set_all],
        [CONFIG, *set_all, *unset_all],
        ["--config", "configs/digits.py", *unset_apart],
        [CONFIG, *unset_all, *set_all],
    )
    for field, value in values.items():
        assert get(given, field) == get(given_last, field) == value, field
        assert get(unset, field) is get(apart, field) is None, field


def test_paths_in_the_home_folder(tmp_path):
    (tmp_path / "experiment.py").write_text("from configs.digits import get_config\n")
    fields = ("init_from", "data.data_dir", "data.folder")
    (config,) = parse(
        ["--config=~/experiment.py", *(f"--config.{field}=~/{field}" for field in fields)],
        home=tmp_path,
    )
    for field in fields:
        assert get(config, field) == str(tmp_path / field)


def test_values_apart_from_their_fields():
    """With spaces in place of =, of every type; a flag is true where it stands alone."""
    config, *flips = parse(
        ["--config", "configs/digits.py", "--config.epochs", "0.5", "--config.data.flip",
         "--config.seed", "-3", "--config.model.name", "repvgg_a0", "--config.data.std", "(1,)",
         "--noconfig.data.flip", "--config.data.unreadable=", "--config.init_from", "a=b"],
        [CONFIG, "--config.data.flip", "true"],
        [CONFIG, "--config.data.flip", "false"],
    )  # fmt: skip
    fields = ("epochs", "seed", "model.name", "data.std", "data.flip", "data.unreadable")
    assert [get(config, field) for field in fields] == [0.5, -3, "repvgg_a0", [1], False, ""]
    assert config["init_from"] == "a=b"
    assert [get(config, "data.flip") for config in flips] == [True, False]


def test_an_error_inside_a_configuration_keeps_its_traceback(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    command = [sys.executable, "-m", "train.main", f"--config={path}", "--config.seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert "return 1 / 0" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_help_that_cannot_be_written():
    read, write = os.pipe()
    os.close(read)
    program = "from train.engine import config_flags; config_flags.run(print)"
    command = [sys.executable, "-c", program, "--help"]
    with os.fdopen(write, "w") as gone, open("/dev/full", "w") as full:
        statuses, errors = [], []
        for stdout in (gone, full):
            done = subprocess.run(
                command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
            )
            statuses.append(done.returncode)
            errors.append(done.stderr)
    assert statuses == [141, 1]
    message = "error: standard output cannot be written: No space left on device\n"
    assert errors == ["", message]


MISTAKES = [
    ([], "Name a configuration: --config=configs/digits.py"),
    (["--config="], "--config must name a file"),
    (["--config=nowhere.py"], "--config=nowhere.py: there is no such Python file"),
    (["--config=configs"], "--config=configs: there is no such Python file"),
    (["--config=README.md"], "--config=README.md: there is no such Python file"),
    (
        [CONFIG, "--config.xyzzy=1"],
        "There is no field config.xyzzy; configs/common.py lists all fields.",
    ),
    (
        [CONFIG, "--config.xyzzy=None"],
        "There is no field config.xyzzy; configs/common.py lists all fields.",
    ),
    ([CONFIG, "--config.model.xyzzy=1"], "There is no field config.model.xyzzy; configs"),
    ([CONFIG, "--config.xyzzy.layers=1"], "There is no field config.xyzzy.layers; configs"),
    ([CONFIG, "--config.seed.xyzzy=1"], "There is no field config.seed.xyzzy; configs"),
    ([CONFIG, "--config.model.name.foo=None"], "There is no field config.model.name.foo; configs"),
    ([CONFIG, "--config.model.name.foo=1"], "There is no field config.model.name.foo; configs"),
    ([CONFIG, "--config.init_from.foo", "None"], "There is no field config.init_from.foo; configs"),
    ([CONFIG, "--config.=1"], "There is no field config.; configs"),
    ([CONFIG, "--noconfig.flip"], "There is no field config.flip; configs"),
    ([CONFIG, "--config.modell.name=x"], 'config.modell.name. Did you mean "model"'),
    (
        [CONFIG, "--config.epochs", "--workdir", "out"],
        "config.epochs has no value: --config.epochs=V",
    ),
    ([CONFIG, "--config.init_from", "--config.seed=1"], "config.init_from has no value"),
    ([CONFIG, "--config.model.name", "-verbosity=1"], "config.model.name has no value"),
    ([CONFIG, "--config.epochs"], "config.epochs has no value"),
    ([CONFIG, "--config.epochs="], "config.epochs takes a number; got ''"),
    ([CONFIG, "--config.seed=x", "--config.seed=1"], "config.seed takes a whole number; got 'x'"),
    ([CONFIG, "--config.data.flip", "2"], "config.data.flip takes true or false; got '2'"),
    ([CONFIG, "--noconfig.seed"], "config.seed takes a whole number; got 'false'"),
    ([CONFIG, "--nosuch=1"], "Unknown command line flag 'nosuch'"),
    ([CONFIG, "--verbosity=loud"], "--verbosity=loud"),
    (["--config"], "Name a configuration: --config=configs/digits.py"),
    (["--config=configs/digits.py:row"], "This configuration has no rows"),
    (["--config=configs/xl_320.py:row"], "no row 'row'; it has paper, official"),
    (["--config=train/errors.py"], "train/errors.py: this file has no function get_config"),
    (
        [CONFIG, "--config.augmentation.images_per_draw=8"],
        "config.augmentation.images_per_draw is now called config.augmentation.mixup_group_size.",
    ),
    ([CONFIG, "--config.batchsize=1"], 'config.batchsize. Did you mean "batch_size"'),
    ([CONFIG, "--config.batch_size=many"], "config.batch_size takes a whole number; got 'many'"),
    ([CONFIG, "--config.batch_size=1.5"], "config.batch_size takes a whole number; got '1.5'"),
    ([CONFIG, "--config.epochs=all"], "config.epochs takes a number; got 'all'"),
    ([CONFIG, "--config.optimizer.clip_norm=x"], "clip_norm takes a number; got 'x'"),
    ([CONFIG, "--config.data.flip=2"], "config.data.flip takes true or false; got '2'"),
    ([CONFIG, "--config.batch_size=None"], "config.batch_size cannot be None; it is 64 here"),
    ([CONFIG, "--config.data.flip=None"], "config.data.flip cannot be None; it is False here"),
    ([CONFIG, "--config.mode=None"], "config.mode cannot be None; it is 'train' here"),
    ([CONFIG, "--config.model=None"], "config.model cannot be None; it is a section"),
    ([CONFIG, "--config.model=3"], "--config.model=3"),
    ([CONFIG, "--config.init_from=~no_such_user/x"], "~no_such_user/x"),
]


def test_mistakes_are_one_line_that_names_them():
    errors = parse(*(arguments for arguments, _ in MISTAKES))
    for (arguments, message), error in zip(MISTAKES, errors, strict=True):
        assert isinstance(error, str), arguments
        assert error.startswith("error: ")
        assert message in error
        assert len(error.splitlines()) == 1
