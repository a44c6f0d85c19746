"""Devices and processes: one mesh, the batch split over all of it, the state over one axis."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import RunError

T = TypeVar("T")


def start_processes(distributed: Mapping[str, Any]) -> None:
    """Joins the processes of a run over several hosts; does nothing for a single process.

    Args:
      distributed: `coordinator` ("host:port" of process 0; "auto" lets JAX ask the cluster's
        scheduler; None for a single process), `num_processes` and `process_id`.

    Raises:
      RunError: they do not find one another.
    """
    coordinator = distributed["coordinator"]
    if coordinator is None:
        return
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                coordinator, distributed["num_processes"], distributed["process_id"]
            )
    except (ValueError, RuntimeError) as error:
        raise RunError(f"config.distributed.coordinator={coordinator}: {error}") from error


def device_mesh(*batch_sizes: int, fsdp: int = 1) -> Mesh:
    """All devices of all processes, in rows of `fsdp`: the axes `data` and `fsdp`.

    The batch is split over both; what a run remembers (parameters, moments, moving average) over
    `fsdp` alone, and is there once in every row. Auto axes: the compiler places the collectives,
    so batch norm sees the global batch.

    Raises:
      RunError: a batch that the devices cannot share evenly, or devices that make no rows.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise RunError(
            f"config.mesh.fsdp = {fsdp} does not divide the {devices} devices of this run."
        )
    for batch_size in batch_sizes:
        if batch_size % devices:
            raise RunError(
                f"A batch of {batch_size} cannot be split evenly over {devices} devices; "
                f"use a multiple of {devices} for batch_size / accumulation and eval_batch_size."
            )
    return jax.make_mesh((devices // fsdp, fsdp), _AXES, axis_types=(AxisType.Auto,) * 2)


_AXES = ("data", "fsdp")
_SMALLEST_SHARDED = 2**14  # elements; of less, sending for the parts costs more than it saves


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def micro_batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of micro-batches (M, B, ...): the second axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, _AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: statistics, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: T) -> T:
    """The sharding of each array of a state: its longest axis over `fsdp`, if that divides it.

    Small arrays, such as biases and batch norms, are whole on every device.

    Args:
      mesh: from `device_mesh`.
      state: a tree of arrays, or of their shapes.
    """
    parts = mesh.shape["fsdp"]

    def sharding(leaf) -> NamedSharding:
        divisible = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % parts == 0]
        if parts == 1 or not divisible or leaf.size < _SMALLEST_SHARDED:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def global_batches(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Joins the rows of every process into arrays of the global batch."""
    sharding = batch_sharding(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def is_main_process() -> bool:
    """Whether this is the process that writes logs and speaks to the user."""
    return jax.process_index() == 0


def on_all_processes(work: Callable[[], T]) -> T:
    """Runs `work` in every process at once; where it fails in one, it fails in all.

    Otherwise the others would wait for that one without end.

    Raises:
      RunError, OSError: its own, or one that names the processes that failed.
    """
    result, failure = None, None
    try:
        result = work()
    except (RunError, OSError) as error:
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failure is None and failed.any():
            processes = ", ".join(map(str, np.flatnonzero(failed)))
            failure = RunError(f"Process {processes} had to stop; its own message says why.")
    if failure is not None:
        raise failure
    return result


def one_process_at_a_time(work: Callable[[], None]) -> None:
    """Runs `work` in one process after another, as `on_all_processes` does.

    For preparing files, whether or not the processes share a disk.
    """
    for process in range(jax.process_count()):
        on_all_processes(work if process == jax.process_index() else lambda: None)
