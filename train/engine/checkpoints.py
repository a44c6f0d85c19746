"""Checkpoints of a run, written atomically and in the background. The latest and best are kept."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_leaves_with_path

from replk_jax.io import checksums
from replk_jax.io.errors import error_text
from replk_jax.io.files import on_disk, replace_json
from replk_jax.models.variables import differences, in_lines
from train.engine import parallel
from train.engine.step import TrainState
from train.errors import RunError

_ITEMS = ("params", "batch_stats", "opt_state")
_PARTIAL = ".partial"  # ends the names of incomplete checkpoints and of those being deleted
_SCORE = "score.json"


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for the last write when it exits.

    A checkpoint is a folder named after its step. It has the items `params`, `batch_stats`,
    `opt_state` and, if there is an EMA, `ema`; `description` in JSON; `checksums.json`; and, once
    it has been evaluated, `score.json`. A folder has this name only while it is complete: a new
    checkpoint is renamed last, an old one is renamed before it is deleted. So a run that is killed
    leaves complete checkpoints only. The list of checkpoints is always read from the folder.

    Orbax's `CheckpointManager` is not used: it has no checksums of arrays, and after a failed write
    it lists a checkpoint that does not exist. The cost: the main process gathers the whole state in
    its memory and writes it alone, and each process reads the whole of it.

    Args:
      folder: of the checkpoints; all processes must see the same one.
      keep: number of latest checkpoints to keep, besides the one with the best score.
      description: of the model, stored in each checkpoint as JSON.
      on_failure: "stop" or "continue" the run when a checkpoint cannot be written.
      report: called with messages for the user, in the main process only.

    Raises:
      RunError, OSError: the folder cannot be made or cleaned.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        description: dict[str, Any],
        *,
        on_failure: str = "stop",
        report: Callable[[str], None] = print,
    ):
        self.folder = folder.absolute()
        self._keep = keep
        self._description = description
        self._continue_on_failure = on_failure == "continue"
        self._main = parallel.is_main_process()
        self._report = report if self._main else lambda text: None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        parallel.on_all_processes(self._prepare_folder)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An exception that ends the run must not be replaced by one about a failed save.
        if kind is None:
            self.wait()
        self._writer.shutdown()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint and returns; the next call, or `wait`, reports a failure.

        All processes of a run must call it at the same step.

        Args:
          step: number of steps done.
          state: after that step; its arrays may be donated as soon as this returns.

        Raises:
          RunError: the previous write failed, with `on_failure="stop"`.
        """
        self.wait()
        names = _ITEMS if state.ema is None else (*_ITEMS, "ema")
        trees = jax.tree.map(_readable, {name: getattr(state, name) for name in names})
        if self._main:
            trees = jax.device_get(trees)
            if jax.default_backend() == "cpu":  # these are the device's own arrays
                trees = jax.tree.map(np.array, trees)
            self._writing = self._writer.submit(self._write, step, trees)

    def score(self, step: int, score: float) -> None:
        """Starts writing the score of a checkpoint and returns, as `save` does.

        Args:
          step: of the checkpoint. Without one, nothing is written.
          score: of its state; higher is better.
        """
        self.wait()
        if self._main and self.path(step).is_dir():
            self._writing = self._writer.submit(self._write_score, step, score)

    def wait(self) -> None:
        """Waits for the last write.

        Raises:
          RunError: it failed, with `on_failure="stop"`.
        """
        parallel.on_all_processes(self._finish_write)

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return max(self._steps(), default=None)

    def best(self) -> int | None:
        """Step of the checkpoint with the best score; the latest of those with equal scores."""
        scores = {step: _score(self.path(step)) for step in self._steps()}
        scored = [(score, step) for step, score in scores.items() if score is not None]
        return max(scored)[1] if scored else None

    def scored(self, step: int) -> bool:
        """Whether the checkpoint of a step has been evaluated."""
        return bool(_decided_by_main(lambda: int(_score(self.path(step)) is not None)))

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / str(step)

    def restore_latest(self, like: TrainState) -> tuple[TrainState, int] | None:
        """Reads the latest checkpoint that is not damaged; None if there are no checkpoints.

        Later ones, which are damaged, are reported and renamed to STEP.damaged. If `like` has an
        EMA and the checkpoint has none, the EMA starts from the checkpoint's parameters and
        statistics.

        Args:
          like: a state of arrays or of `jax.ShapeDtypeStruct`, with the shardings to restore to.
            They may differ from those of the run that saved the checkpoint.

        Returns:
          The state and its step.

        Raises:
          RunError: the checkpoint does not fit `like`, or all checkpoints are damaged.
        """
        step = _decided_by_main(self._latest_undamaged)
        if step is None:
            return None
        trees = parallel.on_all_processes(lambda: self._read(step, like))
        fields = {name: _on_devices(tree, getattr(like, name)) for name, tree in trees.items()}
        return like.replace(step=_on_devices(np.int32(step), like.step), **fields), step

    def _write(self, step: int, trees: dict[str, Any]) -> None:
        """Writes a complete checkpoint, or raises and leaves none. Runs in the writer's thread."""
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(tree) for name, tree in trees.items()
        }
        items["description"] = ocp.args.JsonSave(self._description)
        path = self.path(step)
        partial = path.with_name(path.name + _PARTIAL)
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save(partial, args=ocp.args.Composite(**items))
            checksums.record(partial)
            partial.rename(path)
            on_disk(self.folder)
        except BaseException:
            self._remove_partial()
            raise
        self._remove_old()

    def _write_score(self, step: int, score: float) -> None:
        # Without a checksum: if the file is damaged, the checkpoint is evaluated again.
        replace_json(self.path(step) / _SCORE, {"score": score})
        self._remove_old()

    def _remove_old(self) -> None:
        steps = self._steps()
        for step in set(steps[: -self._keep]) - {self.best()}:
            path = self.path(step)
            shutil.rmtree(path.rename(path.with_name(path.name + _PARTIAL)), ignore_errors=True)

    def _remove_partial(self) -> None:
        """Removes half-written and half-deleted checkpoints, Orbax's temporary folders included."""
        for pattern in (f"*{_PARTIAL}*", "*.orbax-checkpoint-tmp*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _finish_write(self) -> None:
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except Exception as error:  # Orbax reports a full disk by various exceptions
            message = self._failure_message(error)
            if not self._continue_on_failure:
                raise RunError(f"{message} Then start the same command again.") from error
            self._report(f"{message} The run continues without it.")

    def _failure_message(self, error: Exception) -> str:
        latest = self.latest()
        last = (
            "There is no complete checkpoint"
            if latest is None
            else f"The last complete checkpoint is {self.path(latest)}"
        )
        return (
            f"A checkpoint could not be written to {self.folder}: {error_text(error)}\n{last}. "
            "If the disk is full or read-only, fix that."
        )

    def _latest_undamaged(self) -> int | None:
        """The step of the latest undamaged checkpoint; renames the damaged ones after it."""
        damaged = {}
        for step in reversed(self._steps()):
            fault = checksums.fault(self.path(step))
            if fault is None:
                for bad, reason in damaged.items():
                    self._report(
                        f"{self.path(bad)} is damaged: {reason}. It is renamed to "
                        f"{self._rename_damaged(bad).name}; resuming from {self.path(step)}."
                    )
                return step
            damaged[step] = fault
        if damaged:
            faults = [f"{self.path(step)}: {reason}" for step, reason in damaged.items()]
            raise RunError(
                f"All checkpoints are damaged:{in_lines(faults)}\nTo train from the start, use "
                f"another --workdir, or remove {self.folder}."
            )
        return None

    def _rename_damaged(self, step: int) -> Path:
        """Renames a damaged checkpoint, so that it is no longer found; returns its new path."""
        name, count = f"{step}.damaged", 1
        while (self.folder / name).exists():
            count += 1
            name = f"{step}.damaged-{count}"
        return self.path(step).rename(self.folder / name)

    def _read(self, step: int, like: TrainState) -> dict[str, Any]:
        """The items of an undamaged checkpoint, as NumPy arrays."""
        path = self.path(step)
        has_ema = (path / "ema").is_dir()
        names = (*_ITEMS, "ema") if has_ema and like.ema is not None else _ITEMS
        wanted = {name: _shapes(getattr(like, name)) for name in names}
        try:
            with _checkpointer() as checkpointer:
                items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
                trees = dict(checkpointer.restore(path, args=ocp.args.Composite(**items)))
        except (ValueError, KeyError) as error:
            raise _misfit(path, f"\n{error_text(error)}") from error
        if found := differences(_by_path(trees), _by_path(wanted)):
            raise _misfit(path, in_lines(found))
        if has_ema and like.ema is None:
            self._report(f"The EMA in {path} is not used: config.ema_decay is 0.")
        if like.ema is not None and not has_ema:
            self._report(f"{path} has no EMA: the EMA starts from its parameters.")
            trees["ema"] = {name: trees[name] for name in ("params", "batch_stats")}
        return trees

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def _prepare_folder(self) -> None:
        """Makes the folder, or removes what a killed run has left half written in it."""
        if self._main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer of this process alone, which does not synchronise with other processes."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _misfit(path: Path, reason: str) -> RunError:
    return RunError(
        f"The checkpoint {path} does not fit this configuration. Use the configuration that the "
        f"run was started with, or another --workdir.{reason}"
    )


def _readable(leaf: Any) -> Any:
    """The array, gathered from other processes if they have shards of it (a collective call)."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def _on_devices(tree: Any, like: Any) -> Any:
    """Puts arrays on the devices, with the shardings of `like`."""

    def put(array: np.ndarray, leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.map(put, tree, like)


def _decided_by_main(choose: Callable[[], int | None]) -> int | None:
    """The main process's choice, broadcast to all processes."""
    step = parallel.on_all_processes(lambda: choose() if parallel.is_main_process() else None)
    if jax.process_count() == 1:
        return step
    broadcast = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if broadcast < 0 else broadcast


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_leaves_with_path(tree)
    }


def _score(checkpoint: Path) -> float | None:
    """The score of a checkpoint; None if there is none, or if it cannot be read."""
    try:
        return float(json.loads((checkpoint / _SCORE).read_bytes())["score"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
