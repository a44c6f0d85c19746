"""Devices and processes: a mesh with the shardings of batches and of the state."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import RunError

T = TypeVar("T")


def start_processes(distributed: Mapping[str, Any]) -> None:
    """Initialises `jax.distributed`, for a run of several processes; does nothing for a single one.

    Args:
      distributed: `coordinator` ("host:port" of process 0; "auto" to ask the cluster's scheduler;
        None for a single process), `num_processes` and `process_id`.

    Raises:
      RunError: the processes cannot connect.
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
    """A mesh of all devices of all processes, with the axes `data` and `fsdp`.

    The batch is sharded over both axes. The state (parameters, moments, EMA) is sharded over `fsdp`
    and replicated over `data`. The axes are Auto: the compiler places the collectives, so batch
    norm uses the statistics of the global batch.

    Args:
      *batch_sizes: of all devices together; each must be a multiple of the number of devices.
      fsdp: size of that axis.

    Raises:
      RunError: the number of devices is not a multiple of `fsdp`, or does not divide a batch size.
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
_SMALLEST_SHARDED = 2**14  # elements; gathering a smaller array costs more than it saves


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def micro_batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of micro-batches (M, B, ...): the second axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, _AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device has a copy of, such as metrics."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: T) -> T:
    """The sharding of each array of a state: its longest axis that `fsdp` divides, over `fsdp`.

    Small arrays, such as biases and batch norms, are replicated.

    Args:
      mesh: from `device_mesh`.
      state: a tree of arrays, or of their shapes.
    """
    shards = mesh.shape["fsdp"]

    def sharding(leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % shards == 0]
        if shards == 1 or not divisible or leaf.size < _SMALLEST_SHARDED:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def global_batches(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Global arrays of each batch, from this process's rows of it."""
    sharding = batch_sharding(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints messages."""
    return jax.process_index() == 0


def on_all_processes(work: Callable[[], T]) -> T:
    """Runs `work` in every process at once, and raises in all of them if it fails in one.

    Otherwise the other processes would wait forever for the one that failed.

    Raises:
      RunError, OSError: from `work`; or a RunError that names the processes where it failed.
    """
    try:
        result = work()
    except (RunError, OSError):
        _failed_processes(True)
        raise
    if failed := _failed_processes(False):
        processes = ", ".join(map(str, failed))
        raise RunError(f"Process {processes} failed; see its own message.")
    return result


def _failed_processes(failed: bool) -> list[int]:
    """The processes that have failed; a collective call that reports whether this one has."""
    if jax.process_count() == 1:
        return [0] if failed else []
    return np.flatnonzero(multihost_utils.process_allgather(np.array(failed))).tolist()


def by_main_process(work: Callable[[], T]) -> T:
    """Runs `work` in the main process alone, and returns its result in all of them.

    Args:
      work: its result is JSON: numbers, also NaN, texts, None, and lists and dictionaries of these.

    Raises:
      RunError, OSError: see `on_all_processes`.
    """
    text = on_all_processes(lambda: json.dumps(work()) if is_main_process() else "")
    if jax.process_count() > 1:
        data = np.frombuffer(text.encode(), np.uint8)
        size = int(multihost_utils.broadcast_one_to_all(np.array(data.size)))
        sent = data if is_main_process() else np.zeros(size, np.uint8)
        text = np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes().decode()
    return json.loads(text)


def one_process_at_a_time(work: Callable[[], None]) -> None:
    """Runs `work` in one process after another; a failure in one is raised in all.

    For preparing files, whether or not the processes share a disk.

    Raises:
      RunError, OSError: see `on_all_processes`.
    """
    for process in range(jax.process_count()):
        on_all_processes(work if process == jax.process_index() else lambda: None)
