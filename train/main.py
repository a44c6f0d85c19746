"""Trains a network: python -m train.main --config configs/digits.py --workdir out/digits

Started again with the same workdir, it resumes from the last checkpoint. Any field of the
configuration can be set on the command line: --config.batch_size=256. With --config.mode=eval it
evaluates the network in --config.init_from=FILE.

Exit status: 0 at the end of the run; 75 if it was asked to stop (SIGTERM, or Ctrl-C once) and has
saved a checkpoint, from which the same command resumes; 130 after Ctrl-C twice; 1 for an error that
the user can fix.
"""

import os
import sys
from pathlib import Path

import jax
from absl import flags

from replk_jax.cli.clean_exit import INTERRUPTED
from train.engine import config_flags as command_line
from train.engine.config_flags import CONFIG, flag_path
from train.engine.evaluate import evaluate_checkpoint
from train.engine.interruption import EXIT_STATUS, Interrupted
from train.engine.loop import run
from train.errors import RunError, stop, stopping
from train.tasks import find_task

_WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the curve")


def main(_: list[str]) -> None:
    config = CONFIG.value
    evaluate = config.mode == "eval"
    workdir = None
    try:
        with stopping():
            if _WORKDIR.value:
                workdir = flag_path("workdir", _WORKDIR.value).absolute()
                _make_folder(workdir)
            if evaluate:
                evaluate_checkpoint(config, workdir, find_task(config))
            elif workdir is None:
                raise RunError("--workdir=DIR is missing: a folder for checkpoints and metrics.")
            else:
                run(config, workdir, find_task(config))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stop(
            "Out of memory: set --config.accumulation=2 or more, or --config.model.remat="
            f"save_depthwise, or lower --config.batch_size.\n{error}"
        )
    except Interrupted as interrupted:
        print(f"{interrupted} The same command resumes from it.", flush=True)
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        remedy = f"The same command resumes from the last checkpoint in {workdir}."
        print("Interrupted.", "" if evaluate else remedy, file=sys.stderr, flush=True)
        # A normal exit would wait minutes for the other processes.
        (os._exit if jax.distributed.is_initialized() else sys.exit)(INTERRUPTED)


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"--workdir={path} is a file; name a folder.")
    path.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    command_line.run(main)
