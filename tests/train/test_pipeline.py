"""Batches: complete, in an order of their own, and the same whatever reads them."""

import hashlib
import time
from itertools import islice

import grain
import numpy as np
import pytest

from train.data import pipeline
from train.errors import RunError

THREADS = {"threads": 2, "workers": 0}


class Numbers:
    """Examples 0, 1, 2, ... that are told apart by their label."""

    def __init__(self, length):
        self._length = length
        self.class_names = [str(i) for i in range(length)]

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return {"label": index}


class Noise(grain.transforms.RandomMap):
    def random_map(self, example, rng):
        return {"label": np.int32(example["label"]), "image": rng.integers(0, 255, 3)}


class Same(grain.transforms.Map):
    def map(self, example):
        return {"label": np.int32(example["label"]), "mask": example["mask"]}


def train_batches(count=6, *, batch_size=8, length=20, seed=0, start_step=0, reading=THREADS):
    batches = pipeline.train_batches(
        Numbers(length), Noise(), batch_size=batch_size, seed=seed, start_step=start_step,
        reading=reading,
    )  # fmt: skip
    return list(islice(batches, count))


def digest(batches):
    md5 = hashlib.md5()
    for batch in batches:
        for name in sorted(batch):
            md5.update(np.ascontiguousarray(batch[name]).tobytes())
    return md5.hexdigest()


def test_every_epoch_holds_every_example_once_in_another_order():
    labels = np.concatenate([batch["label"] for batch in train_batches(5, length=20)])
    first, second = labels[:20].tolist(), labels[20:].tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second != sorted(second)


def test_same_example_differs_between_epochs():
    batches = train_batches(5, length=20)
    labels = np.concatenate([batch["label"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    again = [images[labels == label] for label in range(20)]
    assert sum(not np.array_equal(a, b) for a, b in again) > 15


def test_seed_decides():
    assert digest(train_batches()) == digest(train_batches())
    assert digest(train_batches()) != digest(train_batches(seed=1))


def test_resumes_at_any_step():
    assert digest(train_batches()[4:]) == digest(train_batches(2, start_step=4))


@pytest.mark.parametrize("reading", [{"threads": 1, "workers": 0}, {"threads": 1, "workers": 2}])
def test_threads_and_workers_change_nothing(reading):
    assert digest(train_batches()) == digest(train_batches(reading=reading))


def test_no_more_is_read_than_two_batches_ahead():
    """Batches of ImageNet are hundreds of megabytes."""

    class Counting(Numbers):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    batches = pipeline.train_batches(
        Counting(1000), Noise(), batch_size=8, seed=0, start_step=0, reading=THREADS
    )
    next(batches)
    time.sleep(0.2)
    assert Counting.reads <= 8 + 2 * 8 + THREADS["threads"]


def test_a_broken_example_stops_the_run_with_its_own_error():
    class Broken(Numbers):
        def __getitem__(self, index):
            if index == 5:
                raise RunError("cat.png is broken")
            return super().__getitem__(index)

    batches = pipeline.train_batches(
        Broken(8), Noise(), batch_size=8, seed=0, start_step=0, reading=THREADS
    )
    with pytest.raises(RunError, match=r"cat\.png is broken"):
        next(batches)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(processes, monkeypatch):
    """Their rows, one after another, are the batch of a single process."""
    expected = train_batches()
    monkeypatch.setattr("jax.process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        shares.append(train_batches())
    for step, batch in enumerate(expected):
        joined = {name: np.concatenate([share[step][name] for share in shares]) for name in batch}
        assert digest([joined]) == digest([batch])


@pytest.mark.parametrize(("length", "batch_size"), [(20, 8), (16, 8), (3, 8), (20, 4), (1, 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_example_once(length, batch_size, processes, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: processes)
    seen, counts = [], set()
    for process in range(processes):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        batches = list(
            pipeline.eval_batches(Numbers(length), Same(), batch_size=batch_size, reading=THREADS)
        )
        counts.add(len(batches))
        for batch in batches:
            assert batch["label"].shape == batch["mask"].shape == (batch_size // processes,)
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(length))
    assert counts == {-(-length // batch_size)}  # as many batches for every process
