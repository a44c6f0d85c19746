"""Fields of a configuration on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict, FieldReference

from configs import common

# Parses each list of arguments on standard input in a fork of its own, since absl's flags are
# global, and prints the configurations, or the errors.
PARSE = """
import json, os, sys
from train import command_line

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
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def get(config, field):
    for part in field.split("."):
        config = config[part]
    return config


def test_every_optional_field_takes_a_value_and_none():
    assert {"init_from", "optimizer.clip_norm", "model.replknet.layers"} <= OPTIONAL.keys()
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


MISTAKES = [
    ([], "Name a configuration: --config=configs/digits.py"),
    (["--config="], "--config must name a file"),
    (["--config=nowhere.py"], "--config=nowhere.py: there is no such Python file"),
    (["--config=configs"], "--config=configs: there is no such Python file"),
    (["--config=README.md"], "--config=README.md: there is no such Python file"),
    ([CONFIG, "--config.xyzzy=1"], "There is no field config.xyzzy. (configs/common.py"),
    ([CONFIG, "--config.xyzzy=None"], "There is no field config.xyzzy. (configs/common.py"),
    ([CONFIG, "--config.model.xyzzy=1"], "There is no field config.model.xyzzy."),
    ([CONFIG, "--config.xyzzy.layers=1"], "There is no field config.xyzzy.layers."),
    ([CONFIG, "--config.seed.xyzzy=1"], "There is no field config.seed.xyzzy."),
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
