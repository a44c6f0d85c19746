"""Batches of a source, for training without end and for evaluation exactly once.

The position in the training data is a function of the step alone, so a resumed run needs no
saved iterator, and every example, crop and batch is the same for any number of threads,
worker processes and hosts; also where images cannot be read.
"""

import atexit
import contextlib
import dataclasses
import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from grain.multiprocessing import SharedMemoryArray

from replk_jax.io.text import escaped
from replk_jax.vision.images import ImageError
from train.engine.interruption import obey_main_process
from train.errors import RunError

Example = dict[str, Any]
Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by position; one whose image cannot be fetched raises ImageError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


# So many images in a row that cannot be read are more than an accident.
_TRIES = 10
# So many examples pass from thread to thread at a time; one by one it takes a tenth of all time.
_TOGETHER = 32


def train_batches(
    source: Source,
    transform: grain.transforms.RandomMap,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    reading: Mapping[str, int | None],
    replace: bool,
) -> Iterator[Batch]:
    """This process's rows of the training batches from `start_step` on.

    Every epoch is shuffled anew; a batch may straddle two epochs.

    Args:
      source: the examples.
      transform: applied to each, with a generator of its own. What it makes are arrays by name,
        of the same shapes for all examples; `mask` and `unreadable` are names of this pipeline.
      batch_size: of all processes together.
      seed: of the order and of the transform.
      start_step: how many batches to pass over, at no cost.
      reading: `threads`, and `workers` (processes; 0 for none); see `count_threads`.
      replace: whether the next example of the source takes the place of one whose image cannot
        be read.

    Yields:
      What the transform makes of examples, in arrays (batch_size / processes, ...); and
      `unreadable`, str, with a line for each image that another one stands for.

    Raises:
      RunError: an image that cannot be read and is not replaced, or ten of them in a row.
    """
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(_ForTraining(_Reader(source, replace), transform))
    size = _own_size(batch_size)
    return _read(_own_rows(dataset, batch_size)[start_step * size :], size, reading)


def eval_batches(
    source: Source,
    transform: grain.transforms.Map,
    *,
    batch_size: int,
    reading: Mapping[str, int | None],
    replace: bool,
) -> Iterator[Batch]:
    """This process's rows of batches that hold every example once.

    The last batch is filled up with examples whose `mask` is False; so is that of an example
    that stands for one whose image cannot be read.

    Args:
      source, transform, batch_size, reading, replace: as of `train_batches`.

    Yields:
      As `train_batches`; and `mask`, bool.

    Raises:
      RunError: as `train_batches`.
    """
    length = -(-len(source) // batch_size) * batch_size
    dataset = grain.MapDataset.range(length)
    dataset = dataset.map(_ForEvaluation(_Reader(source, replace), transform))
    return _read(_own_rows(dataset, batch_size), _own_size(batch_size), reading)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Examples of a source by position, or those that follow where an image cannot be read."""

    source: Source
    replace: bool

    def read(
        self, index: int, transform: Callable[[Example], dict[str, Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """A transformed example, and what is wrong with those that it stands for."""
        unreadable = []
        for offset in range(_TRIES):
            try:
                return transform(self.source[(index + offset) % len(self.source)]), unreadable
            except ImageError as error:
                if not self.replace:
                    raise RunError(
                        f"{error} Fix or remove it, or set --config.data.unreadable=replace."
                    ) from error
                unreadable.append(escaped(str(error)))
        raise RunError(f"{_TRIES} images in a row cannot be read. The last: {unreadable[-1]}")


@dataclasses.dataclass(frozen=True)
class _ForTraining(grain.transforms.RandomMap):
    reader: _Reader
    transform: grain.transforms.RandomMap

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        example, unreadable = self.reader.read(
            index, lambda example: self.transform.random_map(example, rng)
        )
        return _told(example, unreadable=np.str_("\n".join(unreadable)))


@dataclasses.dataclass(frozen=True)
class _ForEvaluation(grain.transforms.Map):
    """Beyond the end of the source its last example comes again, masked."""

    reader: _Reader
    transform: grain.transforms.Map

    def map(self, index: int) -> dict[str, Any]:
        last = len(self.reader.source) - 1
        example, unreadable = self.reader.read(min(index, last), self.transform.map)
        beyond = index > last
        return _told(
            example,
            mask=np.bool_(not beyond and not unreadable),
            unreadable=np.str_("" if beyond else "\n".join(unreadable)),
        )


def _told(example: dict[str, Any], **fields: np.generic) -> dict[str, Any]:
    """The example with the pipeline's own fields."""
    if taken := example.keys() & fields.keys():
        raise ValueError(f"An example's {', '.join(taken)} would be lost: give it another name.")
    return {**example, **fields}


class _Rows(grain.MapDataset):
    """Of every `batch` consecutive examples the `size` from `start` on.

    Contiguous rows, so that the global batch has one order whatever the number of processes.
    """

    def __init__(self, parent: grain.MapDataset, *, batch: int, start: int, size: int):
        super().__init__(parent)
        self._batch, self._start, self._size = batch, start, size

    def __len__(self) -> int:
        return len(self._parent) // self._batch * self._size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._size)
        return self._parent[batch * self._batch + self._start + row]


def count_threads(reading: Mapping[str, int | None]) -> int:
    """Of this process, or of each of its `workers`: `threads`, or if that is None one a processor.

    More would only wait for one another; and above eight in one process, for Python.
    """
    if reading["threads"]:
        return reading["threads"]
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    return min(8, max(1, processors // max(1, reading["workers"])))


def _own_size(batch_size: int) -> int:
    return batch_size // jax.process_count()


def _own_rows(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    size = _own_size(batch_size)
    return _Rows(dataset, batch=batch_size, start=jax.process_index() * size, size=size)


def _read(rows: grain.MapDataset, size: int, reading: Mapping[str, int | None]) -> Iterator[Batch]:
    """Batches of `size` rows, some of which are being made while one is used.

    Threads alone are two batches ahead; with workers each thread of each is at one batch.
    """
    threads, workers = count_threads(reading), reading["workers"]
    if workers:
        # Whole batches for each worker: single examples would come back in another order.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = rows.batch(size, drop_remainder=True).to_iter_dataset(options)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        return _from_workers(iter(batches.mp_prefetch(processes, worker_init_fn=obey_main_process)))
    together = math.gcd(size, _TOGETHER)
    while together > 1 and together * threads > size:
        together //= 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size // together)
    parts = rows.batch(together, drop_remainder=True, batch_fn=list).to_iter_dataset(options)
    return iter(parts.batch(size // together, batch_fn=_batch))


def _from_workers(batches: grain.DatasetIterator) -> Iterator[Batch]:
    """Copies batches out of the memory that is shared with the workers, and frees it.

    The memory of a batch is freed once it is copied. That of batches under way is freed when the
    iterator ends, is closed or is collected, or else when the program ends: before
    `multiprocessing` stops the thread in which Grain frees memory.
    """
    ending = contextlib.ExitStack()  # runs what it is given once
    ending.callback(_end_workers, batches)
    atexit.register(ending.close)
    try:
        yield from map(_copied, batches)
    finally:
        atexit.unregister(ending.close)
        ending.close()


def _copied(batch: Batch) -> Batch:
    return {name: _copy_and_free(values) for name, values in batch.items()}


def _copy_and_free(values: np.ndarray) -> np.ndarray:
    """A copy of an array; its shared memory loses its name, and so cannot outlive the process.

    Grain does that when the array is collected. It may never be: the traceback of the exception
    that ends a worker's batches, StopIteration included, holds the last of them.
    """
    copy = np.array(values)
    if isinstance(values, SharedMemoryArray):
        values.shm.unlink()
        # Grain must not unlink it again. No public name says so.
        values._unlink_on_del = False
    return copy


def _end_workers(batches: grain.DatasetIterator) -> None:
    batches.close()
    # Batches under way may be in a reference cycle, with an exception and its traceback.
    gc.collect()
    # Grain frees them in one thread, in order. No public name waits for that.
    if freeing := SharedMemoryArray._del_thread_pool:
        freeing.apply(lambda: None)


def _batch(parts: Sequence[list[dict[str, Any]]]) -> Batch:
    examples = [example for part in parts for example in part]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
