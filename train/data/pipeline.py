"""Batches of a source: infinite and shuffled for training, every example once for evaluation.

The position in the training data depends on the step only, so a resumed run needs no saved
iterator. Examples, crops and batches are the same for any number of threads, worker processes and
hosts, even if images cannot be read.
"""

import atexit
import contextlib
import dataclasses
import gc
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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


class Batches(Iterator[Batch], Protocol):
    """Batches; closing ends the threads and processes that make them."""

    def close(self) -> None: ...


class Source(Protocol):
    """Examples by position; raises ImageError for an image that cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Transform(Protocol):
    """A transform of an example."""

    def map(self, example: Example) -> Example: ...


class RandomTransform(Protocol):
    """A random transform of an example."""

    def random_map(self, example: Example, rng: np.random.Generator) -> Example: ...


_MAX_UNREADABLE_IN_A_ROW = 10
# Examples that a thread passes on at a time. Passing single ones would take 10 % of the time.
_CHUNK_SIZE = 32


def train_batches(
    source: Source,
    transform: RandomTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    reading: Mapping[str, int | None],
    replace: bool,
) -> Batches:
    """This process's rows of the training batches from `start_step` on.

    Every epoch has its own order; a batch may straddle two epochs.

    Args:
      source: the examples.
      transform: applied to each example, with its own random generator. It returns arrays by
        name, with the same shapes for all examples, and none named `unreadable`, nor `mask` in
        `eval_batches`.
      batch_size: of all processes.
      seed: of the order and of the transform.
      start_step: number of batches to skip, at no cost.
      reading: `threads`, and `workers` (processes; 0 for none); see `count_threads`.
      replace: whether an example whose image cannot be read is replaced by the next one.

    Yields:
      The transformed examples as arrays (batch_size / processes, ...); and `unreadable`, str, with
      a message in a line for each image that was replaced.

    Raises:
      RunError: an image cannot be read and is not replaced, or ten in a row cannot be read.
    """
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(_TrainExample(_ReplacingReader(source, replace), transform))
    return read_batches(dataset, batch_size, reading, start_step)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    reading: Mapping[str, int | None],
    replace: bool,
) -> Batches:
    """This process's rows of batches that have every example once.

    `mask` is False for the padding of the last batch, and for examples that replace others.

    Args:
      source, transform, batch_size, reading, replace: see `train_batches`.

    Yields:
      As `train_batches`; and `mask`, bool.

    Raises:
      RunError: see `train_batches`.
    """
    length = -(-len(source) // batch_size) * batch_size
    dataset = grain.MapDataset.range(length)
    dataset = dataset.map(_EvalExample(_ReplacingReader(source, replace), transform))
    return read_batches(dataset, batch_size, reading)


def read_batches(
    dataset: grain.MapDataset,
    batch_size: int,
    reading: Mapping[str, int | None],
    start_step: int = 0,
) -> Batches:
    """This process's rows of the batches of a data set.

    Args:
      dataset: of examples with arrays of one shape in each batch; its length is a multiple of the
        batch size, or infinite (see `grain.MapDataset.repeat`).
      batch_size: of all processes.
      reading: see `train_batches`.
      start_step: number of batches to skip, at no cost.
    """
    size = _rows_per_process(batch_size)
    return _read(_process_rows(dataset, batch_size)[start_step * size :], size, reading)


def unreadable_error(error: ImageError) -> RunError:
    """What to raise for an image that cannot be read and is not to be replaced."""
    return RunError(f"{error} Fix or remove it, or set --config.data.unreadable=replace.")


@dataclasses.dataclass(frozen=True)
class _ReplacingReader:
    """Reads examples of a source; the next one if an image cannot be read and `replace` is set."""

    source: Source
    replace: bool

    def read(
        self, index: int, transform: Callable[[Example], Example]
    ) -> tuple[Example, list[str]]:
        """A transformed example, and the error messages of those that it replaces."""

        def at(offset: int) -> Example:
            return transform(self.source[(index + offset) % len(self.source)])

        return first_readable(at, self.replace)


def first_readable(read: Callable[[int], Example], replace: bool) -> tuple[Example, list[str]]:
    """The result of `read(0)`; of `read(1)` and so on while images cannot be read.

    Args:
      read: gives an example.
      replace: whether an example is replaced by the next one.

    Returns:
      The example, and the error messages of those that it replaces.

    Raises:
      RunError: an image cannot be read and is not replaced, or ten in a row cannot be read.
    """
    unreadable = []
    for offset in range(_MAX_UNREADABLE_IN_A_ROW):
        try:
            return read(offset), unreadable
        except ImageError as error:
            if not replace:
                raise unreadable_error(error) from error
            unreadable.append(escaped(str(error)))
    raise RunError(
        f"{_MAX_UNREADABLE_IN_A_ROW} images in a row cannot be read. The last: {unreadable[-1]}"
    )


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    """The transformed training example of an index."""

    reader: _ReplacingReader
    transform: RandomTransform

    def random_map(self, element: int, rng: np.random.Generator) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # Grain's returns None
        example, unreadable = self.reader.read(
            element, lambda example: self.transform.random_map(example, rng)
        )
        return with_fields(example, unreadable=np.str_("\n".join(unreadable)))


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    """The transformed example of an index; after the end of the source, the last one, masked."""

    reader: _ReplacingReader
    transform: Transform

    def map(self, element: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # Grain's returns None
        last = len(self.reader.source) - 1
        example, unreadable = self.reader.read(min(element, last), self.transform.map)
        padding = element > last
        return with_fields(
            example,
            mask=np.bool_(not padding and not unreadable),
            unreadable=np.str_("" if padding else "\n".join(unreadable)),
        )


def with_fields(example: Example, **fields: np.generic) -> Example:
    """Adds fields of the pipeline to an example."""
    if taken := example.keys() & fields.keys():
        raise ValueError(
            f"The pipeline has fields named {', '.join(taken)}: rename those of the examples."
        )
    return {**example, **fields}


class _Rows(grain.MapDataset):
    """The rows [start, start + size) of every `batch` consecutive examples.

    They are contiguous, so that the order in the global batch is the same for any number of
    processes.
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
    """Number of threads of this process, or of each of its `workers`.

    If `threads` is None, there is one for each processor, but at most eight in a process, since
    more would wait for Python's lock.
    """
    if reading["threads"]:
        return reading["threads"]
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(8, max(1, processors // (reading["workers"] or 1)))


def _rows_per_process(batch_size: int) -> int:
    return batch_size // jax.process_count()


def _process_rows(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """This process's rows of all batches."""
    size = _rows_per_process(batch_size)
    return _Rows(dataset, batch=batch_size, start=jax.process_index() * size, size=size)


def _read(rows: grain.MapDataset, size: int, reading: Mapping[str, int | None]) -> Batches:
    """Batches of `size` rows, prefetched.

    Without workers, threads prefetch two batches. With workers, each of their threads makes a
    batch.
    """
    threads, workers = count_threads(reading), reading["workers"]
    if workers:
        # A worker makes whole batches: the order of single examples would change.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = rows.batch(size, drop_remainder=True).to_iter_dataset(options)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        return _from_workers(iter(batches.mp_prefetch(processes, worker_init_fn=obey_main_process)))
    chunk_size = math.gcd(size, _CHUNK_SIZE)
    while chunk_size > 1 and chunk_size * threads > size:
        chunk_size //= 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size // chunk_size)
    chunks = rows.batch(chunk_size, drop_remainder=True, batch_fn=list).to_iter_dataset(options)
    return iter(chunks.batch(size // chunk_size, batch_fn=_stack))


def _from_workers(batches: grain.DatasetIterator) -> Generator[Batch, None, None]:
    """Copies batches from the memory that is shared with the workers, and frees it.

    The memory of a batch is freed as soon as it is copied. That of prefetched batches is freed when
    the generator ends, is closed or is garbage-collected, at the latest when the program exits:
    before `multiprocessing` stops the thread in which Grain frees memory.
    """
    cleanup = contextlib.ExitStack()  # runs its callback only once
    cleanup.callback(_end_workers, batches)
    atexit.register(cleanup.close)
    try:
        yield from map(_copy_and_free_batch, batches)
    finally:
        atexit.unregister(cleanup.close)
        cleanup.close()


def _copy_and_free_batch(batch: Batch) -> Batch:
    return {name: _copy_and_free(values) for name, values in batch.items()}


def _copy_and_free(values: np.ndarray) -> np.ndarray:
    """A copy of an array. Its shared memory is unlinked, so it cannot outlive the process.

    Grain unlinks the memory when the array is garbage-collected. That may never happen to the last
    batch: the traceback of the exception that ends a worker (StopIteration too) refers to it.
    """
    copy = np.array(values)
    if isinstance(values, SharedMemoryArray) and values.shm is not None:
        values.shm.unlink()
        # Keeps Grain from unlinking it again. There is no public interface for this.
        values._unlink_on_del = False
    return copy


def _end_workers(batches: grain.DatasetIterator) -> None:
    batches.close()
    # Prefetched batches may be in a reference cycle, with an exception and its traceback.
    gc.collect()
    # Grain frees memory in one thread, in order. There is no public interface for waiting.
    if pool := SharedMemoryArray._del_thread_pool:
        pool.apply(lambda: None)


def _stack(chunks: Sequence[list[Example]]) -> Batch:
    """A batch of all examples in the chunks."""
    examples = [example for chunk in chunks for example in chunk]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
