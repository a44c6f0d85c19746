"""Checkpoints of a run: atomic, written in the background, the latest few and the best."""

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
_PARTIAL = ".partial"  # behind the name of what is not complete, or about to be deleted
_SCORE = "score.json"


class Checkpoints:
    """The checkpoints in a folder, a context manager that waits for the last one at its end.

    Each is a folder named after its step, with the items `params`, `batch_stats`, `opt_state` and,
    where there is a moving average, `ema`, and with `description` in JSON; an evaluation adds
    `score.json`. It gets its name when it is complete, `checksums.json` and all, and loses it
    before it is deleted: a run that is killed at any moment leaves complete checkpoints only, and
    which there are is read from the folder, never from memory.

    Orbax's own manager does none of the last three: it has no checksums of arrays, and after a
    write that failed it names a checkpoint that is not there. The price: the main process alone
    writes, from a copy of the state in its memory, whatever the devices, to a folder that all
    processes see as files; and each process reads the whole.

    Args:
      folder: where they lie; all processes see the same.
      keep: how many of the latest to keep, besides the one of the best score.
      description: what to store beside each for whoever finds it: which model it is of.
      on_failure: when one cannot be written, "stop", or "continue" without it.
      report: is told, in the main process, what the user should hear of.

    Raises:
      RunError, OSError: the folder cannot be made or tidied.
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
        self._continues = on_failure == "continue"
        self._main = parallel.is_main_process()
        self._report = report if self._main else lambda text: None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        parallel.on_all_processes(self._tidy)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What stopped the run is what its user must hear, not a save that failed besides.
        if kind is None:
            self.wait()
        self._writer.shutdown()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint and returns; a failure shows in the next call or in `wait`.

        All processes of a run call it at the same step.

        Args:
          step: number of steps done.
          state: after that step; its arrays may be donated as soon as this returns.

        Raises:
          RunError: what was written before could not be, and such a run is to stop.
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
        """As `save`, for what an evaluation has found out about a checkpoint.

        Args:
          step: of the checkpoint; where it could not be written, nothing is.
          score: of its state; the higher, the better.
        """
        self.wait()
        if self._main and self.path(step).is_dir():
            self._writing = self._writer.submit(self._write_score, step, score)

    def wait(self) -> None:
        """Returns when what was saved is complete, or has failed.

        Raises:
          RunError: it could not be written, and such a run is to stop.
        """
        parallel.on_all_processes(self._settle)

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return max(self._steps(), default=None)

    def best(self) -> int | None:
        """Step of the complete checkpoint with the best score, the latest of several."""
        scores = {step: _score(self.path(step)) for step in self._steps()}
        scored = [(score, step) for step, score in scores.items() if score is not None]
        return max(scored)[1] if scored else None

    def scored(self, step: int) -> bool:
        """Whether the checkpoint of a step has the score of an evaluation."""
        return bool(_decided_by_main(lambda: int(_score(self.path(step)) is not None)))

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / str(step)

    def restore_latest(self, like: TrainState) -> tuple[TrainState, int] | None:
        """Reads the latest checkpoint that is not damaged; None if there has never been one.

        Those that are damaged and later than it are reported and set aside as STEP.damaged. Where
        `like` has a moving average and the checkpoint has none, it begins from the checkpoint's
        parameters and statistics.

        Args:
          like: a state of arrays, or of their shapes, with the shardings to read onto, whatever
            the devices that it was saved from.

        Returns:
          The state and its step.

        Raises:
          RunError: it does not fit `like`, or all that there are are damaged.
        """
        step = _decided_by_main(self._latest_sound)
        if step is None:
            return None
        trees = parallel.on_all_processes(lambda: self._read(step, like))
        fields = {name: _on_devices(tree, getattr(like, name)) for name, tree in trees.items()}
        return like.replace(step=_on_devices(np.int32(step), like.step), **fields), step

    def _write(self, step: int, trees: dict[str, Any]) -> None:
        """What the writer does: a complete checkpoint, or none and an error."""
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
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
        self._remove_superfluous()

    def _write_score(self, step: int, score: float) -> None:
        # Without a checksum: should it be damaged, the evaluation is made again.
        replace_json(self.path(step) / _SCORE, {"score": score})
        self._remove_superfluous()

    def _remove_superfluous(self) -> None:
        steps = self._steps()
        for step in set(steps[: -self._keep]) - {self.best()}:
            path = self.path(step)
            shutil.rmtree(path.rename(path.with_name(path.name + _PARTIAL)), ignore_errors=True)

    def _remove_partial(self) -> None:
        """What is half written or half deleted, under our name for it or Orbax's."""
        for pattern in (f"*{_PARTIAL}*", "*.orbax-checkpoint-tmp*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except Exception as error:  # whatever Orbax makes of a full disk
            if not self._continues:
                raise RunError(f"{self._failure(error)} Then start the same command again.") from (
                    error
                )
            self._report(f"{self._failure(error)} The run goes on without it.")

    def _failure(self, error: Exception) -> str:
        latest = self.latest()
        last = (
            "There is none" if latest is None else f"The last complete one is {self.path(latest)}"
        )
        return (
            f"A checkpoint could not be written to {self.folder}: {error_text(error)}\n{last}. "
            "If the disk is full or read-only, fix that."
        )

    def _latest_sound(self) -> int | None:
        """Goes back to what is not damaged, and sets aside what is."""
        damaged = {}
        for step in reversed(self._steps()):
            fault = checksums.fault(self.path(step))
            if fault is None:
                for bad, reason in damaged.items():
                    self._report(
                        f"{self.path(bad)} is damaged: {reason}. It is now called "
                        f"{self._aside(bad).name}, and the run goes on from {self.path(step)}."
                    )
                return step
            damaged[step] = fault
        if damaged:
            faults = [f"{self.path(step)}: {reason}" for step, reason in damaged.items()]
            raise RunError(
                f"No checkpoint is left that is not damaged:{in_lines(faults)}\nTo train anew, "
                f"name another --workdir, or take {self.folder} away."
            )
        return None

    def _aside(self, step: int) -> Path:
        """Gives a damaged checkpoint a name under which nobody takes it for a good one."""
        name, count = f"{step}.damaged", 1
        while (self.folder / name).exists():
            count += 1
            name = f"{step}.damaged-{count}"
        return self.path(step).rename(self.folder / name)

    def _read(self, step: int, like: TrainState) -> dict[str, Any]:
        """The items of a checkpoint that is not damaged, in this process's memory."""
        path = self.path(step)
        averaged = (path / "ema").is_dir()
        names = (*_ITEMS, "ema") if averaged and like.ema is not None else _ITEMS
        wanted = {name: _shapes(getattr(like, name)) for name in names}
        try:
            with _checkpointer() as checkpointer:
                items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
                trees = dict(checkpointer.restore(path, args=ocp.args.Composite(**items)))
        except (ValueError, KeyError) as error:
            raise _misfit(path, f"\n{error_text(error)}") from error
        if found := differences(_by_path(trees), _by_path(wanted)):
            raise _misfit(path, in_lines(found))
        if averaged and like.ema is None:
            self._report(f"The moving average in {path} is left out: config.ema_decay is 0.")
        if like.ema is not None and not averaged:
            self._report(f"{path} has no moving average: it begins from the parameters there.")
            trees["ema"] = {name: trees[name] for name in ("params", "batch_stats")}
        return trees

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def _tidy(self) -> None:
        """Makes the folder, without what a killed run has left half written."""
        if self._main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()


def _checkpointer() -> ocp.Checkpointer:
    """Orbax for this process alone: it waits for no other."""
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
    """An array that this process can read whole; a collective where parts lie with others."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def _on_devices(tree: Any, like: Any) -> Any:
    """Spreads arrays over devices as `like` is spread."""

    def spread(array: np.ndarray, leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.map(spread, tree, like)


def _decided_by_main(choose: Callable[[], int | None]) -> int | None:
    """What the main process chooses, in all processes."""
    step = parallel.on_all_processes(lambda: choose() if parallel.is_main_process() else None)
    if jax.process_count() == 1:
        return step
    told = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if told < 0 else told


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_leaves_with_path(tree)
    }


def _score(checkpoint: Path) -> float | None:
    """The score of a checkpoint, None where there is none that can be read."""
    try:
        return float(json.loads((checkpoint / _SCORE).read_bytes())["score"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
