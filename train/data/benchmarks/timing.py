"""What is measured of a training transform, and how."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from train.data import pipeline
from train.data.pipeline import Example, RandomTransform, Source

# Seconds per image: {"cpu": CPU time of all threads of this process, "wall": wall-clock time}.
Seconds = dict[str, float]

# The size of ImageNet. Grain's shuffle takes 0.003 ms for an index there; in a set of 128, 0.15 ms.
_EXAMPLES = 1_281_167


class Benchmark(Protocol):
    """The benchmark of a kind of task."""

    @property
    def batch_size(self) -> int:
        """Of the pipeline."""
        ...

    @property
    def shortest(self) -> int:
        """The least number of images that the pipeline is measured with.

        With fewer, starting the threads has too much weight.
        """
        ...

    @property
    def transforms(self) -> Mapping[str, RandomTransform]:
        """The training transform "train", and the same steps written with Pillow, "pillow"."""
        ...

    def write(self, folder: Path, count: int) -> str:
        """Writes the files of `count` examples, the same for each call; returns what they are."""
        ...

    def open(self, folder: Path) -> Source:
        """The examples that `write` wrote."""
        ...

    def stage_seconds(self, source: Source, name: str) -> dict[str, Seconds]:
        """The time of each stage, and of the whole transform of that name, in one thread."""
        ...


def pipeline_seconds(
    benchmark: Benchmark,
    source: Source,
    transform: RandomTransform,
    reading: Mapping[str, int | None],
) -> dict[str, float | None]:
    """The time of the pipeline from files to batches; "cpu" is None with worker processes."""
    size = benchmark.batch_size
    batches = pipeline.train_batches(
        _Repeated(source, _EXAMPLES),
        transform,
        batch_size=size,
        seed=0,
        start_step=0,
        reading=reading,
        replace=False,
    )
    count = max(len(source), benchmark.shortest) // size
    with contextlib.closing(batches):
        next(batches)  # starts threads and workers
        measured = seconds(lambda _: next(batches), range(count))
    cpu = None if reading["workers"] else measured["cpu"] / size
    return {"cpu": cpu, "wall": measured["wall"] / size}


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """The examples of a source, repeated up to a length."""

    source: Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.source[index % len(self.source)]


def seconds(function: Callable[..., Any], *arguments: Iterable[Any]) -> Seconds:
    """The mean time of a call; there is one for each item of the arguments."""
    calls = list(zip(*arguments, strict=True))
    cpu, wall = time.process_time(), time.perf_counter()
    for values in calls:
        function(*values)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / len(calls), "wall": wall / len(calls)}


def median(measured: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The median of each time; None if it is not known."""
    values = {key: [each[key] for each in measured] for key in measured[0]}
    known = {key: [x for x in samples if x is not None] for key, samples in values.items()}
    return {key: statistics.median(samples) if samples else None for key, samples in known.items()}
