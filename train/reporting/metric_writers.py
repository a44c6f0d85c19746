"""Writers of metrics and pictures: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]  # made at run time by protobuf
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]  # made at run time by protobuf
)
from tensorboardX.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]  # made at run time by protobuf
)

from replk_jax.io.files import json_text, replace_text
from train.errors import RunError
from train.reporting.pictures import as_png

_RGB = 3  # a colour space of TensorBoard


class MetricWriter(Protocol):
    """Writes metrics and pictures; all methods raise OSError if they cannot be written."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes metrics of a step; may be called again for the same step, with other metrics."""

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures of a step, uint8 (H, W, 3) by name."""

    def close(self, failed: bool) -> None:
        """Closes the writer; `failed` is True if an exception ended the run."""


class JsonLines:
    """`metrics.jsonl`: a line per report, {"step": ..., name: value, ...}.

    Lines of an earlier, killed run about steps after `first_step` are removed, since these steps
    will be reported again.

    Args:
      path: the file.
      first_step: number of steps done already.
    """

    def __init__(self, path: Path, first_step: int):
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            replace_text(path, "".join(f"{json_text(line)}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json_text({"step": step, **values}) + "\n")
        self._file.flush()

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Does nothing: the lines have numbers only."""

    def close(self, failed: bool) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, without incomplete ones; null is read as NaN.

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
    """Whether a JSON value is an object with `step` and numbers."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and all(value is None or isinstance(value, (int, float)) for value in line.values())
    )


class TensorBoard:
    """A file of TensorBoard events, written and flushed by each call of `write`.

    tensorboardX's `SummaryWriter` is not used: its thread ends on a full disk, and closing then
    waits for that thread forever.

    Args:
      folder: of the files; each start of a run adds one.
      first_step: number of steps done already. TensorBoard hides earlier events of later steps.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=first_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, Summary(value=scalars))

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        images = {
            name: Summary.Image(
                height=pixels.shape[0],
                width=pixels.shape[1],
                colorspace=_RGB,
                encoded_image_string=as_png(pixels),
            )
            for name, pixels in pictures.items()
        }
        values = [Summary.Value(tag=name, image=image) for name, image in images.items()]
        self._write(step, Summary(value=values))

    def _write(self, step: int, summary: Summary) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._events.flush()

    def close(self, failed: bool) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run in a project of Weights & Biases; a resumed run continues it.

    The id of the run is stored in `wandb_run.txt` in its folder. Its configuration is
    `config.json`.

    Args:
      project: name of the project.
      workdir: folder of the run.

    Raises:
      RunError: wandb is not installed, or cannot start the run.
    """

    def __init__(self, project: str, workdir: Path):
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # optional
        except ImportError as error:
            raise RunError(
                f"config.wandb={project} needs a package ({error}): pip install wandb"
            ) from error
        self._wandb = wandb
        path = workdir / "wandb_run.txt"
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                id=path.read_text().strip() if path.exists() else None,
                resume="allow",
                dir=workdir,
                config=json.loads((workdir / "config.json").read_text()),
                allow_val_change=True,  # a run may be resumed with a lower learning rate
            )
        except wandb.Error as error:
            raise RunError(
                f"config.wandb={project}: {error}\nLog in with `wandb login`, or set "
                "WANDB_MODE=offline and send the run with `wandb sync` later."
            ) from error
        replace_text(path, f"{self._run.id}\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def write_pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        images = {name: self._wandb.Image(pixels) for name, pixels in pictures.items()}
        self._run.log(images, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
