"""What the programs that take a configuration share: its flag, and errors in one line."""

import os
import sys
import traceback
from typing import NoReturn

import jax
from absl import flags, logging
from ml_collections import config_flags

from replk_jax.text import escaped_lines, print_anything
from train.errors import RunError

CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file", lock_config=True)
flags.mark_flags_as_required(["config"])


def parse(argv: list[str]) -> list[str]:
    """As absl does, but with one line for a field or file that does not exist.

    To be given to `absl.app.run` as `flags_parser`.
    """
    print_anything()
    try:
        rest = flags.FLAGS(argv)
    except RunError as error:  # from get_config
        stop(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if _raised_inside_get_config(error):
            raise
        reason = f"no such field: {error.args[0]}" if isinstance(error, KeyError) else str(error)
        if "get_config() takes 0 positional arguments" in reason:
            stop("This configuration has no rows: leave out the colon and what follows it.")
        stop(f"{reason} (configs/common.py lists all fields)")
    if len(rest) > 1:
        stop(f"Unknown argument {rest[1]!r}; fields are set with --config.FIELD=VALUE.")
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS report every move, and warn of what is meant: saving without scores.
        logging.set_verbosity(logging.ERROR)
    return rest


def stop(message: str) -> NoReturn:
    """Ends the program with a line for the user and exit status 1."""
    print(f"error: {escaped_lines(message)}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(1)  # an orderly exit would wait minutes for the other processes
    sys.exit(1)


def _raised_inside_get_config(error: BaseException) -> bool:
    """Whether a configuration file is at fault, whose author needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "get_config" for frame in frames)
