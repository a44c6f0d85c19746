"""Devices and processes: one mesh, its axis `data`, the batch split along it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import RunError


def start_processes(distributed: Mapping[str, Any]) -> None:
    """Joins the processes of a run over several hosts; does nothing for a single process.

    Args:
      distributed: `coordinator` ("host:port" of process 0; "auto" lets JAX ask the cluster's
        scheduler; None for a single process), `num_processes` and `process_id`.
    """
    coordinator = distributed["coordinator"]
    if coordinator is None:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    jax.distributed.initialize(coordinator, distributed["num_processes"], distributed["process_id"])


def data_mesh(*batch_sizes: int) -> Mesh:
    """All devices of all processes along one axis, `data`.

    Auto axes: the compiler places the collectives, so batch norm sees the global batch.

    Raises:
      RunError: a batch that the devices cannot share evenly.
    """
    devices = jax.device_count()
    for batch_size in batch_sizes:
        if batch_size < 1 or batch_size % devices:
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


def in_turn() -> Iterator[None]:
    """Yields once in every process, one process after another.

    For preparing files, whether or not the processes share a disk.
    """
    for process in range(jax.process_count()):
        if process == jax.process_index():
            yield
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"turn of process {process}")
