"""What the programs that take a configuration share: its flag, and errors in one line."""

import argparse
import difflib
import inspect
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

from replk_jax.cli.argument_types import user_path
from replk_jax.cli.clean_exit import clean_exit
from replk_jax.io.errors import error_text
from replk_jax.io.text import escape_unencodable_output
from train.engine.config import RENAMED
from train.errors import RunError, stop, stopping

CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file", lock_config=True)
flags.mark_flags_as_required(["config"])

# An argument that names the configuration file, sets one of its fields, or is a flag of any kind.
_FILE = re.compile(r"--?config(?:=(?P<file>.*))?", re.DOTALL)
_FIELD = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]*)(?:=(?P<value>.*))?", re.DOTALL)
_FLAG = re.compile(r"--?[A-Za-z]")

# Fields in which ~ is the home folder.
_PATHS = ("init_from", "data.data_dir", "data.folder")

# What a field of a type takes, and how absl reads it.
_TYPES: dict[type, tuple[str, flags.ArgumentParser]] = {
    int: ("a whole number", flags.IntegerParser()),
    float: ("a number", flags.FloatParser()),
    bool: ("true or false", flags.BooleanParser()),
}


class _Setting(NamedTuple):
    """A field that an argument sets; the value None is a missing one, "None" that of Python."""

    field: str
    value: str | None


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program with a configuration, and ends it as `clean_exit` does."""
    with clean_exit():
        app.run(main, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """As absl does; but errors are one line, None is a value, and ~ the home folder.

    To be given to `absl.app.run` as `flags_parser`.
    """
    escape_unencodable_output()
    with stopping():
        argv = _with_file(_joined(argv))
        settings = _settings(argv)
        if (config := _read_configuration(argv)) is not None:
            for setting in settings:
                _check(config, setting)
        # ml_collections would take None for the text "None", and not at all for a number.
        rest = _parsed([argument for argument in argv if _value(argument) != "None"])
        for field, value in dict(settings).items():
            if value == "None":
                section, name = _section(CONFIG.value, field)
                section[name] = None
        _expand_paths(CONFIG.value)
    if len(rest) > 1:
        stop(f"Unknown argument {rest[1]!r}; fields are set with --config.FIELD=VALUE.")
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS report every move, and warn of what is meant: saving without scores.
        logging.set_verbosity(logging.ERROR)
    return rest


def flag_path(name: str, value: str) -> Path:
    """The path that a flag gives, with ~ for the home folder.

    Raises:
      RunError: there is no such path.
    """
    try:
        return user_path(value)
    except argparse.ArgumentTypeError as error:
        raise RunError(f"--{name} {error}") from error


def _parsed(argv: list[str]) -> list[str]:
    """The arguments that are no flags, as absl returns them.

    Raises:
      RunError: no configuration, an unknown flag, or a value that a flag does not take.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        if _file_of(argv) is None:
            raise RunError("Name a configuration: --config=configs/digits.py.") from error
        raise RunError(error_text(error)) from error


def _joined(argv: list[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`, and `--config.FIELD VALUE` as `--config.FIELD=VALUE`."""
    joined: list[str] = []
    for argument in argv:
        last = joined[-1] if joined else ""
        if last in ("-config", "--config") or (_lacks_value(last) and not _FLAG.match(argument)):
            joined[-1] = f"{last}={argument}"
        else:
            joined.append(argument)
    return joined


def _lacks_value(argument: str) -> bool:
    match = _FIELD.fullmatch(argument)
    return match is not None and match["value"] is None and not match["no"]


def _settings(argv: list[str]) -> list[_Setting]:
    """What the arguments set, in their order; --noconfig.FIELD is the value "false"."""
    matches = filter(None, map(_FIELD.fullmatch, argv))
    return [_Setting(m["field"], "false" if m["no"] else m["value"]) for m in matches]


def _value(argument: str) -> str | None:
    match = _FIELD.fullmatch(argument)
    return match and match["value"]


def _file_of(argv: list[str]) -> str | None:
    """FILE or FILE:ROW of the last `--config=FILE:ROW`."""
    files = [match["file"] for match in map(_FILE.fullmatch, argv) if match]
    return files[-1] if files else None


def _read_configuration(argv: list[str]) -> ConfigDict | None:
    """The configuration without what the command line sets; None where no file is named.

    absl reads it again. What is wrong is found here: absl would report it in words of its own.

    Raises:
      RunError: there is no `get_config` in the file, or it takes no row, or needs one.
      Exception: what the file raises, for its author.
    """
    file = _file_of(argv)
    if file is None:
        return None
    path, colon, row = file.partition(":")
    rows = [row] if colon else []
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise RunError(f"--config={path}: this file has no function get_config.")
    try:
        inspect.signature(get_config).bind(*rows)
    except TypeError as error:
        reason = (
            "has no rows: leave out the colon and what follows it"
            if rows
            else f"needs a row: --config={path}:ROW"
        )
        raise RunError(f"This configuration {reason}.") from error
    return get_config(*rows)


def _check(config: ConfigDict, setting: _Setting) -> None:
    """Raises RunError for a field that does not exist, or does not take the value."""
    field, value = setting
    section, name = _section(config, field)
    current = dict(section.items(preserve_field_references=True))[name]
    optional = isinstance(current, FieldReference)
    kind = current.get_type() if optional else type(current)
    if value is None and kind is not bool:
        raise RunError(f"config.{field} has no value: --config.{field}=VALUE.")
    if value == "None":
        if not optional:
            shown = "a section" if kind is ConfigDict else f"{current!r} here"
            raise RunError(f"config.{field} cannot be None; it is {shown}.")
    elif value is not None and kind in _TYPES:
        wanted, parser = _TYPES[kind]
        try:
            parser.parse(value)
        except ValueError:
            raise RunError(f"config.{field} takes {wanted}; got {value!r}.") from None


def _section(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """The section that a field is in, and its name there.

    Raises:
      RunError: there is no such field.
    """
    parts = field.split(".")
    section, value = config, config
    for part in parts:
        section, value = value, _get(value, part, field)
    return section, parts[-1]


def _get(section: Any, name: str, field: str) -> Any:
    """The value of that name in a section, if it is one; for an error, the whole field."""
    names = list(section) if isinstance(section, ConfigDict) else []
    if name in names:
        return section[name]
    if field in RENAMED:
        raise RunError(f"config.{field} is now called config.{RENAMED[field]}.")
    close = difflib.get_close_matches(name, names, n=1)
    rest = f'. Did you mean "{close[0]}"?' if close else "; configs/common.py lists all fields."
    raise RunError(f"There is no field config.{field}{rest}")


def _with_file(argv: list[str]) -> list[str]:
    """The arguments with the path of the configuration as the system knows it.

    Raises:
      RunError: there is no such file.
    """
    found = []
    for argument in argv:
        match = _FILE.fullmatch(argument)
        if match and match["file"] is not None:
            name, colon, row = match["file"].partition(":")
            path = flag_path("config", name)
            if path.suffix != ".py" or not path.is_file():
                raise RunError(
                    f"--config={path}: there is no such Python file. Name a configuration, such as "
                    "configs/digits.py."
                )
            argument = f"--config={path}{colon}{row}"
        found.append(argument)
    return found


def _expand_paths(config: ConfigDict) -> None:
    for field in _PATHS:
        section, last = _section(config, field)
        if section[last]:
            section[last] = str(flag_path(f"config.{field}", section[last]))
