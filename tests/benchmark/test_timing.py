"""The stopwatch, on programs that sleep."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.benchmark import timing as stopwatch
from replk_jax.benchmark.timing import ROUNDS, Contender, Program, compete


class Clock:
    """Time that passes only where something sleeps."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def sleeper(seconds, log, name, calls=1, asynchronous=False):
    def start():
        log.append(name)
        stopwatch.time.sleep(seconds)

    return Contender(lambda: Program(start, lambda _: None, calls, asynchronous, 1.5))


def test_seconds_of_one_call():
    log = []
    timing = compete({"a": sleeper(0.02, log, "a", calls=4)}, seconds=0.2)["a"]
    assert timing.minimum == pytest.approx(0.005)
    assert timing.median == pytest.approx(0.005)
    assert timing.runs < len(log)  # some only warm up
    assert timing.compile_seconds == 1.5


def test_turns_alternate():
    """Every round has every program in it, whatever each takes."""
    log = []
    compete({"a": sleeper(0.001, log, "a"), "b": sleeper(0.002, log, "b")}, seconds=0.5)
    changes = sum(one != other for one, other in itertools.pairwise(log))
    assert changes == 2 * (1 + ROUNDS) - 1


@pytest.mark.parametrize("works", [True, False])
def test_memory_is_given_back_after_a_turn(works):
    """In no one's time, before another program runs; also after a failure."""
    log = []

    def start():
        log.append("held")
        stopwatch.time.sleep(0.3)
        if not works:
            raise MemoryError

    def release():
        log.append("released")
        stopwatch.time.sleep(100)

    holder = Contender(lambda: Program(start, lambda _: None, release=release))
    results = compete({"holder": holder, "other": sleeper(0.3, log, "other")}, 0.1, least_runs=2)
    if works:
        assert [each.median for each in results.values()] == pytest.approx([0.3, 0.3])
        assert log == ["held", "released", "other"] * 3
    else:
        assert log == ["held", "released", "other", "other", "other"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("large", [4, 1 << 20], ids=["on the device", "in NumPy"])
def test_results_that_are_not_finite_are_not_timed(value, large, monkeypatch):
    """The other programs are timed."""
    monkeypatch.setattr(stopwatch, "_LARGE_ARRAY", large)
    log = []
    results = {"y": jnp.ones(3), "dx": jnp.ones((2, 3), jnp.bfloat16).at[1, 2].set(value)}

    def start():
        log.append("start")
        return [results, jnp.arange(3)]

    contenders = {"wrong": Contender(lambda: Program(start)), "right": sleeper(0.3, [], "right")}
    found = compete(contenders, seconds=0.1)
    assert isinstance(found["wrong"], FloatingPointError)
    assert str(found["wrong"]) == "The result[0]['dx'] has NaN or infinite elements."
    assert log == ["start"]
    assert found["right"].runs == 3


def test_long_programs_run_seldom():
    log = []
    timing = compete({"a": sleeper(0.3, log, "a")}, seconds=0.1, least_runs=2)["a"]
    assert timing.runs == 2
    assert len(log) == 3  # and once before


def test_short_asynchronous_programs_are_waited_for_seldom():
    starts, waits = [], []

    def start():
        starts.append(0)
        stopwatch.time.sleep(1e-5)

    program = Program(start, waits.append, asynchronous=True)
    compete({"a": Contender(lambda: program)}, seconds=0.01)
    assert len(starts) > 10 * len(waits)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_failure_does_not_end_the_others(concurrent):
    def fail():
        raise RuntimeError("no")

    contenders = {
        "cannot be made": Contender(fail, concurrent),
        "cannot run": Contender(lambda: Program(fail), concurrent),
        "can": sleeper(0.001, [], "can"),
    }
    results = compete(contenders, seconds=0.01)
    assert list(results) == list(contenders)
    assert str(results["cannot be made"]) == str(results["cannot run"]) == "no"
    assert results["can"].runs >= 3
