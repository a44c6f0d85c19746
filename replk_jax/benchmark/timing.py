"""Times programs, interleaved, so that they can be compared."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = 5
# The pause between two programs on a CPU. Idle threads of JAX and PyTorch spin for some
# milliseconds before they sleep, which would slow down the next program.
PAUSE_SECONDS = 0.01
# An asynchronous program is started repeatedly for this time before it is waited for, so that the
# device is never idle.
MIN_WAIT_SECONDS = 2e-3
# A program shorter than this has an untimed run at the start of each turn, to wake its threads and
# to fill the caches.
SHORT_SECONDS = 0.25
_LARGE_ARRAY = 1 << 20  # elements

Name = TypeVar("Name", bound=Hashable)


def require_finite(results: Any) -> None:
    """Checks that the results of a program are finite.

    Args:
      results: a tree of arrays.

    Raises:
      FloatingPointError: an array has a NaN or infinite element.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(results):
        if not _all_finite(leaf):
            name = jax.tree_util.keystr(path)
            raise FloatingPointError(f"The result{name} has NaN or infinite elements.")


def _all_finite(array: Any) -> bool:
    # Small arrays are checked in NumPy, which needs no compilation. Large ones are checked on their
    # device, which needs no copy.
    if np.size(array) < _LARGE_ARRAY:
        return bool(np.isfinite(np.asarray(array)).all())
    return bool(_all_finite_on_device(array))


@jax.jit
def _all_finite_on_device(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to time, including its operands.

    Attributes:
      start: starts the program and returns its results, which may not be ready.
      finish: waits until the results are ready.
      calls: how often `start` performs the computation; times are per call.
      asynchronous: whether it may be started again before it has finished.
      compile_seconds: the compile time, if it is of interest.
      memory_bytes: the memory that it occupies, if known.
      compiled_text: gives XLA's text of the compiled program; None where there is none.
      release: called after each of its turns; frees memory that it keeps only for its next run.
      check: called once, with what the first run returned; raises an error if that is wrong.
    """

    start: Callable[[], Any]
    finish: Callable[[Any], Any] = jax.block_until_ready
    calls: int = 1
    asynchronous: bool = False
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    compiled_text: Callable[[], str | None] = lambda: None
    release: Callable[[], None] = lambda: None
    check: Callable[[Any], None] = require_finite

    def run(self, starts: int = 1) -> tuple[float, Any]:
        """The seconds of one call, averaged over `starts` starts in a row, and the last result."""
        begin = time.perf_counter()
        result = self.start()
        for _ in range(starts - 1):
            result = self.start()
        self.finish(result)
        return (time.perf_counter() - begin) / (starts * self.calls), result

    def seconds(self, starts: int = 1) -> float:
        """The seconds of one call, averaged over `starts` starts in a row."""
        return self.run(starts)[0]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A program that has not been compiled.

    Attributes:
      prepare: compiles it.
      concurrent: whether it may be compiled concurrently with others.
    """

    prepare: Callable[[], Program]
    concurrent: bool = False


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of one call.

    Attributes:
      median, minimum: over the runs.
      runs: number of timed runs; each ends when its results are ready.
      compile_seconds, memory_bytes: of the program.
    """

    median: float
    minimum: float
    runs: int
    compile_seconds: float | None
    memory_bytes: int | None = None


def compete(
    contenders: Mapping[Name, Contender], seconds: float, least_runs: int = 3
) -> dict[Name, Timing | Exception]:
    """Times programs, interleaved, so that changes of clock speed and load affect all equally.

    There are `ROUNDS` rounds, and in each of them every program has a turn. On a CPU a turn starts
    with a pause. If the program is short, an untimed run follows. A program that takes longer than
    a turn runs once per round until it has used up `seconds` and has had `least_runs`.

    Args:
      contenders: by name.
      seconds: how long to repeat each program.
      least_runs: the minimum number of runs, at most `ROUNDS`.

    Returns:
      By name, the timing, or the exception of a program that could not be compiled or run. The
      failure of one program does not affect the others.
    """
    results: dict[Name, Timing | Exception] = {}
    stopwatches = {}
    for name, program in _prepared(contenders).items():
        if isinstance(program, Exception):
            results[name] = program
            continue
        try:
            stopwatches[name] = _Stopwatch(program)
        except Exception as error:
            program.release()
            results[name] = error
    for _ in range(ROUNDS):
        for stopwatch in stopwatches.values():
            stopwatch.take_turn(seconds, least_runs)
    results |= {name: stopwatch.timing() for name, stopwatch in stopwatches.items()}
    return {name: results[name] for name in contenders}


class _Stopwatch:
    """Times one program over several turns."""

    def __init__(self, program: Program):
        """Warms the program up and checks its results."""
        self.program = program
        self.samples: list[float] = []
        self.spent = 0.0
        end = time.perf_counter() + SHORT_SECONDS
        self.expected, result = program.run()
        program.check(result)
        for _ in range(4):
            if time.perf_counter() < end:
                self.expected = min(self.expected, program.seconds())
        program.release()

    def take_turn(self, seconds: float, least_runs: int) -> None:
        """Runs the program for its share of one round."""
        starts, run = self._next_run()
        if len(self.samples) >= least_runs and self.spent + run > seconds:
            return
        if not self.program.asynchronous:
            time.sleep(PAUSE_SECONDS)
        if run < SHORT_SECONDS:
            self.program.seconds(starts)
        begin = time.perf_counter()
        self.samples.append(self.program.seconds(starts))
        while time.perf_counter() + run < begin + seconds / ROUNDS:
            self.samples.append(self.program.seconds(starts))
            starts, run = self._next_run()
        self.spent += time.perf_counter() - begin
        self.program.release()

    def timing(self) -> Timing:
        return Timing(
            statistics.median(self.samples),
            min(self.samples),
            len(self.samples),
            self.program.compile_seconds,
            self.program.memory_bytes,
        )

    def _next_run(self) -> tuple[int, float]:
        """The number of starts before the next wait, and the expected seconds until then."""
        run = self.program.calls * min(self.samples, default=self.expected)
        if not self.program.asynchronous:
            return 1, run
        starts = max(1, round(MIN_WAIT_SECONDS / run))
        return starts, starts * run


def _prepared(contenders: Mapping[Name, Contender]) -> dict[Name, Program | Exception]:
    """Compiles all programs: the concurrent ones in parallel, then the others one by one."""

    def attempt(contender):
        try:
            return contender.prepare()
        except Exception as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = {
            name: pool.submit(attempt, contender)
            for name, contender in contenders.items()
            if contender.concurrent
        }
        results = {name: future.result() for name, future in results.items()}
    for name, contender in contenders.items():
        if not contender.concurrent:
            results[name] = attempt(contender)
    return results
