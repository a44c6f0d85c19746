"""Batches of a source, for training without end and for evaluation exactly once.

The position in the training data is a function of the step alone, so a resumed run needs no
saved iterator, and every example, crop and batch is the same for any number of threads,
worker processes and hosts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np

from train.data.sources import Source

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    transform: grain.transforms.RandomMap,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    reading: Mapping[str, int],
) -> Iterator[Batch]:
    """This process's rows of the training batches from `start_step` on.

    Every epoch is shuffled anew; a batch may straddle two epochs.

    Args:
      source: the examples.
      transform: applied to each, with a generator of its own.
      batch_size: of all processes together.
      seed: of the order and of the transform.
      start_step: how many batches to pass over, at no cost.
      reading: `threads`, and `workers` (processes; 0 for none).

    Yields:
      {"image": uint8 (batch_size / processes, S, S, C), "label": int32 (...)}.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
    size = _own_size(batch_size)
    return _read(_own_rows(dataset, batch_size)[start_step * size :], size, reading)


def eval_batches(
    source: Source,
    transform: grain.transforms.Map,
    *,
    batch_size: int,
    reading: Mapping[str, int],
) -> Iterator[Batch]:
    """This process's rows of batches that hold every example once.

    The last batch is filled up with examples whose `mask` is False.

    Yields:
      {"image": uint8 (batch_size / processes, S, S, C), "label": int32, "mask": bool}.
    """
    dataset = grain.MapDataset.source(_Padded(source, batch_size)).map(transform)
    return _read(_own_rows(dataset, batch_size), _own_size(batch_size), reading)


class _Padded:
    """A source continued with its last example, masked, to a multiple of the batch size."""

    def __init__(self, source: Source, batch_size: int):
        self._source = source
        self._length = -(-len(source) // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        last = len(self._source) - 1
        return {**self._source[min(index, last)], "mask": np.bool_(index <= last)}


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


def _own_size(batch_size: int) -> int:
    return batch_size // jax.process_count()


def _own_rows(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    size = _own_size(batch_size)
    return _Rows(dataset, batch=batch_size, start=jax.process_index() * size, size=size)


def _read(rows: grain.MapDataset, size: int, reading: Mapping[str, int]) -> Iterator[Batch]:
    """Batches of `size` rows, some of which are being made while one is used.

    Threads alone are two batches ahead; with workers each thread of each is at one batch.
    """
    threads, workers = reading["threads"], reading["workers"]
    if workers:
        # Whole batches for each worker: single examples would come back in another order.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = rows.batch(size, drop_remainder=True).to_iter_dataset(options)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        return iter(batches.mp_prefetch(processes))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size)
    return iter(rows.to_iter_dataset(options).batch(size, drop_remainder=True))
