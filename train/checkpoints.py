"""Checkpoints of a run: atomic, written in the background, the latest few and the best."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.errors import RunError
from train.step import TrainState

_ITEMS = ("params", "batch_stats", "opt_state")


class Checkpoints:
    """The checkpoints in a folder, a context manager that waits for the last one at its end.

    Each is a folder named after its step, with the items `params`, `batch_stats` and
    `opt_state`, and `description` in JSON. It gets its name when it is complete, so a run that
    is killed at any moment leaves complete checkpoints only.

    Args:
      folder: where they lie.
      keep: how many of the latest to keep, besides the one of the best `top1`.
      description: what to store beside each for whoever finds it: which model it is of.
    """

    def __init__(self, folder: Path, keep: int, description: dict[str, Any]):
        self.folder = folder.absolute()
        self._description = description
        best = preservation_policy.BestN(
            get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep), best]
            ),
            best_fn=_top1,
            cleanup_tmp_directories=True,  # what a killed run left half written
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
            self._manager.close()
            return
        # What stopped the run is what its user must hear, not a save that failed besides.
        with contextlib.suppress(Exception):
            self._manager.close()

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Starts writing a checkpoint and returns; a failure shows here or in `wait`.

        Args:
          step: number of steps done.
          state: after that step.
          metrics: of an evaluation of this very state, with `top1`, if there was one.

        Raises:
          RunError: this checkpoint or the one before could not be written.
        """
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in _ITEMS}
        items["description"] = ocp.args.JsonSave(self._description)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when all that was saved is complete.

        Raises:
          RunError: a checkpoint could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the best `top1`."""
        return self._manager.best_step()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / str(step)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the checkpoint of a step onto the devices and shardings of `like`.

        Raises:
          RunError: it does not hold what the configuration describes, or is damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {name: ocp.args.StandardRestore(getattr(abstract, name)) for name in _ITEMS}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise RunError(
                f"The checkpoint {self.path(step)} does not fit this configuration, or is "
                "damaged. Use the configuration that the run was started with, or another "
                f"--workdir, or take the checkpoint away.\n{error}"
            ) from error
        return like.replace(
            step=jax.device_put(like.step.dtype.type(step), like.step.sharding),
            **{name: restored[name] for name in _ITEMS},
        )

    def _not_written(self, error: Exception) -> RunError:
        # Not `latest()`, which counts one as soon as its writing begins.
        complete = sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit())
        last = (
            f"The last complete one is {self.path(complete[-1])}" if complete else "There is none"
        )
        return RunError(
            f"A checkpoint could not be written to {self.folder}: {error}\n{last}. "
            "If the disk is full or must not be written to, mend that; then start the same "
            "command again."
        )


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]
