"""The one way in which this package times programs."""

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
# Between two programs on a CPU: PyTorch's idle threads spin for some milliseconds before they
# sleep, and take the cores from JAX's, and the other way round.
PAUSE_SECONDS = 0.01
# Asynchronous programs are started over and over for so long before they are waited for, so
# that the device is never idle.
SHORTEST_WAIT_SECONDS = 2e-3
# A program that is shorter runs once more, uncounted, when its turn comes: its threads have slept
# and the caches are another's.
SHORT_SECONDS = 0.25
_LARGE_ARRAY = 1 << 20  # elements

Name = TypeVar("Name", bound=Hashable)


def require_finite(results: Any) -> None:
    """Checks the results of a program: a speed at which it computes NaN is of no use.

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
    # NumPy compiles nothing, but an accelerator's large arrays would have to be copied for it.
    if np.size(array) < _LARGE_ARRAY:
        return bool(np.isfinite(np.asarray(array)).all())
    return bool(_all_finite_on_device(array))


@jax.jit
def _all_finite_on_device(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to time, its operands included.

    Attributes:
      start: starts it and returns what `finish` waits for.
      finish: returns when the results are there.
      calls: how often `start` does what is to be timed; times are those of one call.
      asynchronous: whether it may be started again before it has finished.
      compile_seconds: what making it took, where that is of interest.
      memory_bytes: what it occupies at once, where that is known.
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
    """What makes a program.

    Attributes:
      prepare: compiles it.
      concurrent: whether others may be compiled meanwhile.
    """

    prepare: Callable[[], Program]
    concurrent: bool = False


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
      median, minimum: over `runs`, each of which was waited for.
      runs: how many were timed.
      compile_seconds, memory_bytes: as the program has them.
    """

    median: float
    minimum: float
    runs: int
    compile_seconds: float | None
    memory_bytes: int | None = None


def compete(
    contenders: Mapping[Name, Contender], seconds: float, least_runs: int = 3
) -> dict[Name, Timing | Exception]:
    """Times programs in turns, so that a change of the clock or of the load hits all alike.

    Every program has its part of each of `ROUNDS` rounds, on a CPU after a pause and, if it is
    short, after a run that is not counted. A program that is longer than its part runs once a
    round, until it has had its time or `least_runs`, whichever comes later.

    Args:
      contenders: by name.
      seconds: to repeat each program for.
      least_runs: of each program, at most `ROUNDS`.

    Returns:
      By name, what was measured, or why the program could not be made or run: the failure of
      one does not end the others.
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
    """Times one program, turn after turn."""

    def __init__(self, program: Program):
        """Runs it for the first time, and again while that is short."""
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
        """One round's part of the time."""
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
        """How often to start it before waiting, and the seconds that this may take."""
        run = self.program.calls * min(self.samples, default=self.expected)
        if not self.program.asynchronous:
            return 1, run
        starts = max(1, round(SHORTEST_WAIT_SECONDS / run))
        return starts, starts * run


def _prepared(contenders: Mapping[Name, Contender]) -> dict[Name, Program | Exception]:
    """The concurrent ones first, together; then the others, one after the other."""

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
