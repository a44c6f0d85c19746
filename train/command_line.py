"""What the programs that take a configuration share: its flag, and errors in one line."""

import argparse
import functools
import operator
import re
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

from replk_jax.command_line import quiet_end, user_path
from replk_jax.errors import error_text
from replk_jax.text import print_anything
from train.errors import RunError, stop, stopping

CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file", lock_config=True)
flags.mark_flags_as_required(["config"])

# An argument that names the configuration file, or sets one of its fields.
_FILE = re.compile(r"--?config(?:=(?P<file>.*))?", re.DOTALL)
_FIELD = re.compile(r"--?config\.(?P<field>[^=]+)(?:=(?P<value>.*))?", re.DOTALL)

# Fields in which ~ is the home folder.
_PATHS = ("init_from", "data.data_dir", "data.folder")

# What a field takes, by what Python and absl say of a value that they cannot read.
_TYPES = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
}


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program with a configuration, and ends it as `quiet_end` does."""
    with quiet_end():
        app.run(main, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """As absl does; but errors are one line, None is a value, and ~ the home folder.

    To be given to `absl.app.run` as `flags_parser`.
    """
    print_anything()
    with stopping():
        argv, values = _without_none(_joined(argv))
        rest = _parsed(_with_file(argv), list(values))
        for field in (field for field, value in values.items() if value == "None"):
            _set_none(CONFIG.value, field)
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


def _parsed(argv: list[str], fields: list[str]) -> list[str]:
    """The arguments that are no flags, as absl returns them.

    Args:
      argv: the arguments.
      fields: of the configuration that they set.

    Raises:
      RunError: an unknown flag or field, or a value of another type.
    """
    try:
        return flags.FLAGS(argv)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        if _raised_inside_get_config(error):
            raise
        reason = _reason(error, fields)
    if "get_config() takes 0 positional arguments" in reason:
        raise RunError("This configuration has no rows: leave out the colon and what follows it.")
    raise RunError(f"{reason} (configs/common.py lists all fields)")


def _reason(error: Exception, fields: list[str]) -> str:
    text = error_text(error).replace("\\n", " ").replace("\\'", "'").strip("'\"")
    if isinstance(error, (LookupError, AttributeError)):  # of a field, which may be all they say
        first = re.match(r"\w*", text)[0]
        field = next((f for f in fields if f in text or first in f.split(".")), first)
        hint = re.search("Did you mean .*", text)
        return f"There is no field config.{field}.{f' {hint[0]}' if hint else ''}"
    if "flag --config=None" in text:
        return "Name a configuration: --config=configs/digits.py."
    if field := re.match(r"flag --(config\..+?)=(.*?): ", text, re.DOTALL):
        for said, wanted in _TYPES.items():
            if said in text:
                return f"{field[1]} takes {wanted}; got {field[2]!r}"
    return text


def _joined(argv: list[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`, and `--config.FIELD None` as `--config.FIELD=None`."""
    joined: list[str] = []
    for argument in argv:
        last = joined[-1] if joined else ""
        if last in ("-config", "--config") or (argument == "None" and _lacks_value(last)):
            joined[-1] = f"{last}={argument}"
        else:
            joined.append(argument)
    return joined


def _lacks_value(argument: str) -> bool:
    match = _FIELD.fullmatch(argument)
    return match is not None and match["value"] is None


def _without_none(argv: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """The arguments that set no field to None; and all fields that are set, with their last values.

    ml_collections would take None for the text "None", and not at all for a number.
    """
    rest: list[str] = []
    values: dict[str, str | None] = {}
    for argument in argv:
        match = _FIELD.fullmatch(argument)
        if match:
            values[match["field"]] = match["value"]
        if match is None or match["value"] != "None":
            rest.append(argument)
    return rest, values


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


def _set_none(config: ConfigDict, field: str) -> None:
    """Raises RunError for a field that must have a value."""
    section, last = _section(config, field)
    value = dict(section.items(preserve_field_references=True))[last]
    if not isinstance(value, FieldReference):
        kind = "a section" if isinstance(value, ConfigDict) else f"{value!r} here"
        raise RunError(f"config.{field} cannot be None; it is {kind}.")
    section[last] = None


def _expand_paths(config: ConfigDict) -> None:
    for field in _PATHS:
        section, last = _section(config, field)
        if section[last]:
            section[last] = str(flag_path(f"config.{field}", section[last]))


def _section(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """The section that a field is in, and its name there."""
    *sections, name = field.split(".")
    return functools.reduce(operator.getitem, sections, config), name


def _raised_inside_get_config(error: BaseException) -> bool:
    """Whether a configuration file is at fault, whose author needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "get_config" for frame in frames)
