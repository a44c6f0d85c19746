"""Where the metrics of a run are kept: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from replk_jax.io.files import json_text, replace_text
from train.errors import RunError


class MetricWriter(Protocol):
    """Keeps metrics; both methods raise OSError if they cannot be written."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Keeps the values of a step, which may be given several times with other names."""

    def close(self, failed: bool) -> None:
        """Ends the writing; `failed` says whether the run did not come to its end."""


class JsonLines:
    """`metrics.jsonl`: a line per report, {"step": ..., name: value, ...}.

    What an earlier, killed run reported beyond `first_step` is taken out first, so every step
    stands once.

    Args:
      path: the file.
      first_step: steps that are done already.
    """

    def __init__(self, path: Path, first_step: int):
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            replace_text(path, "".join(f"{json_text(line)}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json_text({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self, failed: bool) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, without those that a kill cut short; null is NaN.

    Raises:
      RunError: a line is no report of a step.
    """
    lines = []
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if not _is_report(line):
            raise RunError(f"{path}, line {number}, is no report of a step: remove the line.")
        lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def _is_report(line: Any) -> bool:
    """Whether it is an object with a step and numbers."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and all(value is None or isinstance(value, (int, float)) for value in line.values())
    )


class TensorBoard:
    """A file of TensorBoard's events, written when it is told.

    Not by tensorboardX's `SummaryWriter`: that writes from a thread, which a full disk ends, and
    then waits for it without end.

    Args:
      folder: for the files; each start of a run adds one.
      first_step: steps that are done already; TensorBoard hides what was written of later ones.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=first_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=scalars))
        self._events.write_event(event)
        self._events.flush()

    def close(self, failed: bool) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run in a project of Weights & Biases, the same one after every start in a folder.

    Its number is kept in the folder, in `wandb_run.txt`; its configuration is `config.json` there.

    Args:
      project: name of the project.
      workdir: folder of the run.

    Raises:
      RunError: wandb is not installed, or does not begin.
    """

    def __init__(self, project: str, workdir: Path):
        try:
            import wandb
        except ImportError as error:
            raise RunError(
                f"config.wandb={project} needs a package ({error}): pip install wandb"
            ) from error
        path = workdir / "wandb_run.txt"
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                id=path.read_text().strip() if path.exists() else None,
                resume="allow",
                dir=workdir,
                config=json.loads((workdir / "config.json").read_text()),
                allow_val_change=True,  # a run may go on with a lower learning rate
            )
        except wandb.Error as error:
            raise RunError(
                f"config.wandb={project}: {error}\nLog in with `wandb login`, or set "
                "WANDB_MODE=offline and send the run with `wandb sync` later."
            ) from error
        replace_text(path, f"{self._run.id}\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
