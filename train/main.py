"""Trains a network: python -m train.main --config configs/digits.py --workdir out/digits

Started again with the same workdir, it goes on where it was. Any field of the configuration
can be set on the command line: --config.batch_size=256. With --config.mode=eval it evaluates the
network in --config.init_from=FILE.

Exit status: 0 at the end of the run; 75 where it was asked to stop (SIGTERM, or Ctrl-C once), has
saved, and wants to be started again; 1 for what the user must mend.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags

from train import classification
from train.command_line import CONFIG, parse, stop
from train.errors import RunError
from train.evaluate import evaluate_checkpoint
from train.interruption import EXIT_STATUS, Interrupted
from train.loop import run

_WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the curve")


def main(_: list[str]) -> None:
    config = CONFIG.value
    evaluates = config.mode == "eval"
    if not (_WORKDIR.value or evaluates):
        stop("Name a folder for checkpoints, metrics and the curve: --workdir=DIR.")
    workdir = Path(_WORKDIR.value).expanduser().absolute() if _WORKDIR.value else None
    try:
        if workdir:
            workdir.mkdir(parents=True, exist_ok=True)
        if evaluates:
            evaluate_checkpoint(config, workdir, classification.evaluation)
        else:
            run(config, workdir, classification.task)
    except (RunError, OSError) as error:
        stop(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stop(
            "Out of memory: set --config.accumulation=2 or more, or --config.model.remat="
            f"save_depthwise, or lower --config.batch_size.\n{error}"
        )
    except Interrupted as interrupted:
        print(f"{interrupted} The same command goes on from there.", flush=True)
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        stop(f"Interrupted. The same command goes on from the last checkpoint in {workdir}.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
