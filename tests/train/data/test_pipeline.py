"""Batches: complete, in an order of their own, and the same whatever reads them."""

import hashlib
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import grain
import numpy as np
import pytest

from replk_jax.vision.images import ImageError
from train.data import pipeline
from train.errors import RunError
from train.reporting.unreadable import reported

REPOSITORY = Path(__file__).resolve().parents[3]
THREADS = {"threads": 2, "workers": 0}


class Numbers:
    """Examples 0, 1, 2, ... that are told apart by their label."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return {"label": np.int32(index)}


class Damaged(Numbers):
    """Some of them cannot be read."""

    def __init__(self, length, damaged):
        super().__init__(length)
        self._damaged = frozenset(damaged)

    def __getitem__(self, index):
        if index in self._damaged:
            raise ImageError(f"{index}.png is damaged.")
        return super().__getitem__(index)


class Noise(grain.transforms.RandomMap):
    def random_map(self, example, rng):
        return {**example, "image": rng.integers(0, 255, 3)}


class Same(grain.transforms.Map):
    def map(self, example):
        return example


def train_batches(
    count=6, *, batch_size=8, length=20, damaged=(), seed=0, start_step=0, reading=THREADS,
    replace=True,
):  # fmt: skip
    batches = pipeline.train_batches(
        Damaged(length, damaged), Noise(), batch_size=batch_size, seed=seed,
        start_step=start_step, reading=reading, replace=replace,
    )  # fmt: skip
    return list(islice(batches, count))


def eval_batches(source, batch_size, replace=True):
    return pipeline.eval_batches(
        source, Same(), batch_size=batch_size, reading=THREADS, replace=replace
    )


def digest(batches):
    md5 = hashlib.md5()
    for batch in batches:
        for name in sorted(batch):
            values = batch[name]
            if values.dtype.kind == "U":  # as wide as the widest of the batch
                values = np.array("\0".join(values))
            md5.update(np.ascontiguousarray(values).tobytes())
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


def test_names_of_the_pipeline_are_not_taken_from_an_example():
    class Masked(grain.transforms.Map):
        def map(self, example):
            return {**example, "mask": np.zeros((4, 4), bool)}

    batches = pipeline.eval_batches(
        Numbers(4), Masked(), batch_size=2, reading=THREADS, replace=True
    )
    with pytest.raises(ValueError, match="The pipeline has fields named mask"):
        next(batches)


def test_seed_decides():
    assert digest(train_batches()) == digest(train_batches())
    assert digest(train_batches()) != digest(train_batches(seed=1))


def test_resumes_at_any_step():
    assert digest(train_batches()[4:]) == digest(train_batches(2, start_step=4))


@pytest.mark.parametrize("batch_size", [5, 8, 48])
def test_threads_change_nothing(batch_size):
    """Nor how many examples they hand over at a time: with few threads more, if that divides."""
    digests = {
        digest(train_batches(batch_size=batch_size, reading={"threads": threads, "workers": 0}))
        for threads in (1, 2, 7, None)
    }
    assert len(digests) == 1


def test_threads_are_as_many_as_processors(monkeypatch):
    def count(processors, workers=0, threads=None):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(processors), raising=False)
        return pipeline.count_threads({"threads": threads, "workers": workers})

    assert [count(processors) for processors in (1, 2, 64)] == [1, 2, 8]
    assert [count(16, workers) for workers in (1, 4, 16, 40)] == [8, 4, 1, 1]
    assert count(2, threads=5) == 5
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert pipeline.count_threads({"threads": None, "workers": 0}) == 3


@pytest.mark.parametrize(("batch_size", "together"), [(8, 1), (32, 8)])
def test_no_more_is_read_than_two_batches_ahead(batch_size, together):
    """Batches of ImageNet are hundreds of megabytes."""

    class Counting(Numbers):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    batches = pipeline.train_batches(
        Counting(1000), Noise(), batch_size=batch_size, seed=0, start_step=0, reading=THREADS,
        replace=True,
    )  # fmt: skip
    next(batches)
    time.sleep(0.2)
    assert Counting.reads <= 3 * batch_size + THREADS["threads"] * together


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_run(workers):
    reading = {"threads": 1, "workers": workers}
    with pytest.raises(RunError, match=r"5\.png is damaged\..*config\.data\.unreadable=replace"):
        train_batches(3, damaged=[5], reading=reading, replace=False)
    with pytest.raises(RunError, match=r"5\.png is damaged"):
        list(eval_batches(Damaged(20, [5]), 8, replace=False))


def test_the_next_image_takes_the_place_of_a_damaged_one():
    """At its place in the order, and with its crop; all others are as without damage."""
    whole = train_batches(5, length=20)
    damaged = train_batches(5, length=20, damaged=[5, 19])
    expected = {5: 6, 19: 0}
    for before, after in zip(whole, damaged, strict=True):
        np.testing.assert_array_equal(
            after["label"], [expected.get(label, label) for label in before["label"]]
        )
        np.testing.assert_array_equal(after["image"], before["image"])
        reports = [f"{i}.png is damaged." if i in expected else "" for i in before["label"]]
        assert after["unreadable"].tolist() == reports


def test_several_damaged_images_in_a_row():
    batches = train_batches(5, length=20, damaged=range(4, 13))
    labels = np.concatenate([batch["label"] for batch in batches])
    lines = np.concatenate([batch["unreadable"] for batch in batches]).tolist()
    assert np.bincount(labels, minlength=20).tolist() == [2] * 4 + [0] * 9 + [20] + [2] * 6
    assert "\n".join(f"{i}.png is damaged." for i in range(4, 13)) in lines
    with pytest.raises(RunError, match=r"10 images in a row cannot be read\. The last: 1\d\.png"):
        train_batches(5, length=20, damaged=range(4, 14))


@pytest.mark.parametrize(
    ("processes", "workers", "start_step"), [(1, 0, 3), (2, 0, 0), (2, 0, 3), (2, 1, 3)]
)
def test_nothing_changes_the_batches(processes, workers, start_step, monkeypatch):
    """Neither processes nor their workers nor a resumed run, though images are damaged."""
    damaged = [3, 4, 11]
    expected = train_batches(damaged=damaged)[start_step:]
    monkeypatch.setattr("jax.process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        reading = {"threads": 2, "workers": workers}
        shares.append(
            train_batches(len(expected), damaged=damaged, start_step=start_step, reading=reading)
        )
    assert any(line for batch in expected for line in batch["unreadable"])
    assert digest(joined(shares)) == digest(expected)


@pytest.mark.parametrize(
    ("how", "count", "status"),
    [
        ("raise", 3, 1),
        pytest.param("exhaust", 3, 0, marks=pytest.mark.exhaustive),
        pytest.param("close", 2, 0, marks=pytest.mark.exhaustive),
        pytest.param("damaged", 3, 1, marks=pytest.mark.exhaustive),
        pytest.param("interrupt", 3, 130, marks=pytest.mark.exhaustive),
        pytest.param("end", 3, 0, marks=pytest.mark.exhaustive),
    ],
)
def test_workers_leave_nothing_behind(how, count, status):
    """However the reading ends: no shared memory, no semaphores."""
    command = [sys.executable, "-m", "tests.train.reading_with_workers", how]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (f"read {count}" in run.stdout) == (how != "damaged"), run.stderr
    assert run.returncode in (status, -2)  # of SIGINT
    assert ("50.png is damaged" in run.stderr) == (how == "damaged")
    assert "leaked" not in run.stderr
    assert "resource_tracker" not in run.stderr
    assert "Exception ignored" not in run.stderr


def test_names_with_line_breaks_are_one_report_each():
    """Also of several images that one example stands for."""
    names = ["a\nb", "c\x85d", "e\u2028f", "caf\udce9"]

    class Folder(Numbers):
        def __getitem__(self, index):
            if index < len(names):
                raise ImageError(f"Cannot read the image {names[index]}.png: it is empty.")
            return super().__getitem__(index)

    reports = []
    list(reported(eval_batches(Folder(8), 8), reports.append))
    shown = [r"a\nb", r"c\x85d", r"e\u2028f", r"caf\udce9"]
    expected = [f"Cannot read the image {name}.png: it is empty." for name in shown]
    assert set(reports) == set(expected)
    assert len(reports) == 4 + 3 + 2 + 1  # the first stands for four
    assert all(report.isprintable() for report in reports)


def joined(shares):
    """The batches of which every process has its rows."""
    return [
        {name: np.concatenate([rows[name] for rows in batch]) for name in batch[0]}
        for batch in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(processes, monkeypatch):
    """Their rows, one after another, are the batch of a single process."""
    expected = train_batches()
    monkeypatch.setattr("jax.process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        shares.append(train_batches())
    assert digest(joined(shares)) == digest(expected)


@pytest.mark.parametrize(("length", "batch_size"), [(20, 8), (16, 8), (3, 8), (20, 4), (1, 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_example_once(length, batch_size, processes, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: processes)
    seen, counts = [], set()
    for process in range(processes):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        batches = list(eval_batches(Numbers(length), batch_size))
        counts.add(len(batches))
        for batch in batches:
            assert batch["label"].shape == batch["mask"].shape == (batch_size // processes,)
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(length))
    assert counts == {-(-length // batch_size)}  # as many batches for every process


def test_evaluation_masks_damaged_images():
    """The last one too, which fills up the batch."""
    batches = list(eval_batches(Damaged(10, [3, 9]), 8))
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    assert seen.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    lines = np.concatenate([batch["unreadable"] for batch in batches])
    assert [line for line in lines if line] == ["3.png is damaged.", "9.png is damaged."]
