"""Trains a network: python -m train.main --config configs/digits.py --workdir out/digits

Started again with the same workdir, it goes on where it was. Any field of the configuration
can be set on the command line: --config.batch_size=256. With --config.mode=eval it evaluates the
network in --config.init_from=FILE.
"""

import os
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from train.errors import RunError
from train.evaluate import evaluate_checkpoint
from train.loop import run

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the curve")
flags.mark_flags_as_required(["config"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _stop(f"Unknown argument {argv[1]!r}; fields are set with --config.FIELD=VALUE.")
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS report every move, and warn of what is meant: saving without scores.
        logging.set_verbosity(logging.ERROR)
    config = _CONFIG.value
    evaluates = config.mode == "eval"
    if not (_WORKDIR.value or evaluates):
        _stop("Name a folder for checkpoints, metrics and the curve: --workdir=DIR.")
    workdir = Path(_WORKDIR.value).expanduser().absolute() if _WORKDIR.value else None
    try:
        if workdir:
            workdir.mkdir(parents=True, exist_ok=True)
        (evaluate_checkpoint if evaluates else run)(config, workdir)
    except (RunError, OSError) as error:
        _stop(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _stop(f"Out of memory: lower --config.batch_size, or set --config.model.remat.\n{error}")
    except KeyboardInterrupt:
        _stop(f"Interrupted. The same command goes on from the last checkpoint in {workdir}.")


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but with one line for a field or file that does not exist."""
    try:
        return flags.FLAGS(argv)
    except RunError as error:  # from get_config
        _stop(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if _raised_inside_get_config(error):
            raise
        reason = f"no such field: {error.args[0]}" if isinstance(error, KeyError) else str(error)
        if "get_config() takes 0 positional arguments" in reason:
            _stop("This configuration has no rows: leave out the colon and what follows it.")
        _stop(f"{reason} (configs/common.py lists all fields)")


def _raised_inside_get_config(error: BaseException) -> bool:
    """Whether a configuration file is at fault, whose author needs the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "get_config" for frame in frames)


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(1)  # an orderly exit would wait minutes for the other processes
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
