"""Runs `python -m train.main` with each of the argument lists on standard input, in forks of this
process, and prints the exit status and the errors of each."""

import json
import os
import sys
import tempfile
import traceback

from absl import app

from train import main
from train.engine import config_flags as command_line


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and standard error of one run."""
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["train/main.py", *arguments]
            os._exit(_exit_status())  # at once: the interpreter would take a second to wind up
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read()


def _exit_status() -> int:
    try:
        app.run(main.main, flags_parser=command_line.parse)
    except SystemExit as stop:
        if isinstance(stop.code, str):  # as the interpreter does
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
