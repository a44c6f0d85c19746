"""The window between two reports."""

import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from train.reporting.step_metrics import MetricWindow, NotFiniteError


def test_means_of_whatever_there_is():
    window = MetricWindow(8)
    for step, loss, norm in ((1, 1.0, 5.0), (2, 2.0, 5.0), (3, 6.0, 8.0)):
        window.add(step, {"loss": jnp.float32(loss), "param_norm": jnp.float32(norm)})
    values = window.close()
    assert values["train/loss"] == 3
    assert values["train/param_norm"] == 6
    assert values["images_per_second"] > 0
    window.add(4, {"loss": jnp.float32(5), "param_norm": jnp.float32(1)})
    assert window.close()["train/loss"] == 5


def test_the_first_step_compiles_and_is_not_timed():
    window = MetricWindow(8)
    with window.waiting():
        pass
    window.add(1, {"loss": jnp.float32(1)})
    assert window.close() == {"train/loss": 1}


class Clock(threading.local):
    """Each thread's own time, which passes only while it waits for something."""

    now = 0.0

    def wait_until(self, time):
        self.now = max(self.now, time)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(
        "train.reporting.step_metrics.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    return clock


class Pending:
    """A metric that is there at some time, to JAX's functions an array."""

    def __init__(self, clock, there):
        self._clock, self._there = clock, there

    def block_until_ready(self):
        self._clock.wait_until(self._there)

    def __array__(self, *_, **__):
        self.block_until_ready()
        return np.float32(1)


def closed_after(clock, steps, seconds_of_data, seconds_of_step):
    """A loop that waits for data alone, ahead of a device that takes one step after another."""
    window, end = MetricWindow(8), 0.0
    for step in range(1, 2 + steps):
        with window.waiting():
            clock.now += seconds_of_data
        end = max(end, clock.now) + seconds_of_step
        window.add(step, {"loss": Pending(clock, end)})
    return window.close()


def test_waits_for_data_that_is_late(clock):
    """Of the 5 s for a batch the device works 1, and the last step is waited for."""
    values = closed_after(clock, 4, seconds_of_data=5, seconds_of_step=1)
    seconds = 4 * 5 + 1
    # The device is done with the first step, which is not timed, when the window begins.
    assert values["data_wait"] == pytest.approx((5 + 3 * 4) / seconds)
    assert values["images_per_second"] == pytest.approx(4 * 8 / seconds)


def test_a_wait_while_the_device_works_is_none(clock):
    """Half of the time the loop waits for batches, ahead of a device that never does after one."""
    values = closed_after(clock, 10, seconds_of_data=1, seconds_of_step=2)
    seconds = 1 + 10 * 2
    assert values["data_wait"] == pytest.approx(1 / seconds)
    assert values["images_per_second"] == pytest.approx(10 * 8 / seconds)


def test_time_that_is_left_out(clock):
    window = MetricWindow(8)
    window.add(1, {"loss": jnp.float32(1)})
    with window.waiting():
        clock.now += 100
    window.restart_clock()
    with window.waiting():
        clock.now += 2
    window.add(2, {"loss": Pending(clock, clock.now + 2)})
    values = window.close()
    assert values["data_wait"] == pytest.approx(0.5)
    assert values["images_per_second"] == pytest.approx(8 / 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_not_finite_is_named(value):
    window = MetricWindow(8)
    window.add(3, {"loss": jnp.float32(1), "grad_norm": jnp.float32(2)})
    window.add(4, {"loss": jnp.float32(1), "grad_norm": jnp.float32(value)})
    window.add(5, {"loss": jnp.float32(value), "grad_norm": jnp.float32(value)})
    with pytest.raises(NotFiniteError, match=f"grad_norm became {value} at step 4"):
        window.close()


def test_a_term_is_named_before_the_loss_that_it_makes_nan():
    window = MetricWindow(1)
    nan = jnp.float32(np.nan)
    window.add(1, {"grad_norm": nan, "loss": nan, "loss_box": jnp.float32(1), "loss_mask": nan})
    with pytest.raises(NotFiniteError, match="loss_mask became nan at step 1"):
        window.close()
