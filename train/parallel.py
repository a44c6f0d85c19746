"""Devices and processes: one mesh, its axis `data`, the batch split along it."""

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


def data_mesh(*batch_sizes: int) -> Mesh:
    """All devices of all processes along one axis, `data`.

    Auto axes: the compiler places the collectives, so batch norm sees the global batch.

    Raises:
      RunError: a batch that the devices cannot share evenly.
    """
    devices = jax.device_count()
    for batch_size in batch_sizes:
        if batch_size % devices:
            raise RunError(
                f"A batch of {batch_size} cannot be split evenly over {devices} devices; "
                f"use a multiple of {devices} for batch_size and eval_batch_size."
            )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis along `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: parameters, statistics, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def global_batches(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Joins the rows of every process into arrays of the global batch."""
    sharding = split_batch(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def is_main_process() -> bool:
    """Whether this is the process that writes logs and speaks to the user."""
    return jax.process_index() == 0


def together(work: Callable[[], T]) -> T:
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


def in_turn(work: Callable[[], None]) -> None:
    """Runs `work` in one process after another, as `together` does.

    For preparing files, whether or not the processes share a disk.
    """
    for process in range(jax.process_count()):
        together(work if process == jax.process_index() else lambda: None)
