"""The flag --config of the training programs, with overrides and one-line error messages."""

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

# An argument that names the configuration file; one that sets a field; a flag of any kind.
_FILE = re.compile(r"--?config(?:=(?P<file>.*))?", re.DOTALL)
_FIELD = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]*)(?:=(?P<value>.*))?", re.DOTALL)
_FLAG = re.compile(r"--?[A-Za-z]")

# Fields in which ~ is the home folder.
_PATHS = ("init_from", "data.data_dir", "data.folder", "data.classes")

# The values of a field by its type: in words, and the parser of absl.
_TYPES: dict[type, tuple[str, flags.ArgumentParser]] = {
    int: ("a whole number", flags.IntegerParser()),
    float: ("a number", flags.FloatParser()),
    bool: ("true or false", flags.BooleanParser()),
}


class _Setting(NamedTuple):
    """A field that an argument sets. The value None is a missing one; "None" is Python's None."""

    field: str
    value: str | None


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program that takes --config; see `clean_exit` for its exit status."""
    with clean_exit():
        app.run(main, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; the `flags_parser` of `absl.app.run`.

    Unlike absl's own parser, it reports errors in one line, accepts None as a value and expands ~
    in paths.
    """
    escape_unencodable_output()
    with stopping():
        argv = _with_file(_joined(argv))
        settings = _settings(argv)
        if (config := _read_configuration(argv)) is not None:
            for setting in settings:
                _check(config, setting)
        # ml_collections would read None as the text "None", or reject it for a number.
        rest = _parsed([argument for argument in argv if _value(argument) != "None"])
        for field, value in dict(settings).items():
            if value == "None":
                section, name = _section(CONFIG.value, field)
                section[name] = None
        _expand_paths(CONFIG.value)
    if len(rest) > 1:
        stop(f"Unknown argument {rest[1]!r}; fields are set with --config.FIELD=VALUE.")
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS log much, and Orbax warns of checkpoints without scores.
        logging.set_verbosity(logging.ERROR)
    return rest


def flag_path(name: str, value: str) -> Path:
    """The path that a flag gives, with ~ expanded.

    Raises:
      RunError: the value is no valid path.
    """
    try:
        return user_path(value)
    except argparse.ArgumentTypeError as error:
        raise RunError(f"--{name} {error}") from error


def _parsed(argv: list[str]) -> list[str]:
    """Parses with absl; returns the arguments that are no flags.

    Raises:
      RunError: no configuration, an unknown flag, or an invalid value.
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
    """The fields that the arguments set, in order; --noconfig.FIELD has the value "false"."""
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
    """The configuration without the overrides of the command line; None if no file is named.

    absl reads the file again; reading it here gives better error messages.

    Raises:
      RunError: the file has no `get_config`, or a row is given and not accepted, or needed.
      Exception: from the file itself.
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
    """Raises RunError for an unknown field, or a value of the wrong type."""
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
        expected, parser = _TYPES[kind]
        try:
            parser.parse(value)
        except ValueError:
            raise RunError(f"config.{field} takes {expected}; got {value!r}.") from None


def _section(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """The section of a field, and the field's name in it.

    Raises:
      RunError: there is no such field.
    """
    parts = field.split(".")
    section, value = config, config
    for part in parts:
        section, value = value, _get(value, part, field)
    return section, parts[-1]


def _get(section: Any, name: str, field: str) -> Any:
    """The value with a name in a section; `field` is the whole path, for the error message."""
    names = list(section) if isinstance(section, ConfigDict) else []
    if name in names:
        return section[name]
    if field in RENAMED:
        raise RunError(f"config.{field} is now called config.{RENAMED[field]}.")
    close = difflib.get_close_matches(name, names, n=1)
    rest = f'. Did you mean "{close[0]}"?' if close else "; configs/common.py lists all fields."
    raise RunError(f"There is no field config.{field}{rest}")


def _with_file(argv: list[str]) -> list[str]:
    """The arguments, with ~ expanded in the path of the configuration.

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
        parent, _, name = field.rpartition(".")
        if parent and name not in config[parent]:
            continue  # another task has it
        section, last = _section(config, field)
        if section[last]:
            section[last] = str(flag_path(f"config.{field}", section[last]))
