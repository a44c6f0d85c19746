"""Tasks: a module for each kind, and their registry."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from train.engine.task import TaskKind
from train.errors import RunError
from train.tasks.classification import CLASSIFICATION
from train.tasks.detection import DETECTION
from train.tasks.segmentation import SEGMENTATION

TASKS: Mapping[str, TaskKind] = {
    "classification": CLASSIFICATION,
    "detection": DETECTION,
    "segmentation": SEGMENTATION,
}


def find_task(config: ConfigDict) -> TaskKind:
    """The kind of task that `config.task` names.

    Raises:
      RunError: there is no such kind.
    """
    if config.task not in TASKS:
        raise RunError(f"config.task must be one of {', '.join(TASKS)}; it is {config.task}.")
    return TASKS[config.task]
