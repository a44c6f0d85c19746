"""Looks through a data set before anyone trains on it: python -m train.check --config FILE

Every image of the splits of a configuration is decoded. It prints a table, and a line for each
error or warning: images that cannot be read, duplicates, images in two splits, and what else the
task has to say about its annotations. --json=FILE has all of it. Fields are set as in training, for
example --config.data.folder=DIR.

Exit status: 0 without errors, whether or not there are warnings; 1 otherwise.
"""

import sys

from ml_collections import ConfigDict

from replk_jax.io.files import replace_json
from replk_jax.io.text import escaped
from train.engine import config as configuration
from train.engine import config_flags as command_line
from train.engine.json_flag import json_path
from train.errors import stopping
from train.reporting.console import say
from train.reporting.examination import Examination
from train.tasks import find_task


def main(_: list[str]) -> None:
    with stopping():
        path = json_path()
        examination = check(command_line.CONFIG.value)
        say(examination.text())
        if path:
            replace_json(path, examination.json())
            say(f"All findings and statistics are in {escaped(str(path))}.")
    if examination.errors:
        sys.exit(1)


def check(config: ConfigDict) -> Examination:
    """Looks through the splits that a run trains on and is evaluated on.

    Args:
      config: of the run; see configs/common.py.

    Raises:
      RunError: the configuration is invalid, or see `train.engine.task.TaskKind`.
    """
    configuration.check(config)
    kind = find_task(config)
    kind.check(config)
    return kind.examine(config)


if __name__ == "__main__":
    command_line.run(main)
