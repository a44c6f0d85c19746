"""The window between two reports."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from train.metrics import MetricWindow, NotFiniteError


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
        time.sleep(0.01)
    window.add(1, {"loss": jnp.float32(1)})
    assert window.close() == {"train/loss": 1}


class Device:
    """Takes so many seconds for a step, and begins one when it has finished the one before."""

    def __init__(self, seconds):
        self._seconds, self._free = seconds, 0.0

    def step(self):
        self._free = max(self._free, time.perf_counter()) + self._seconds
        return {"loss": Pending(self._free)}


class Pending:
    """A metric that is there at some time, to JAX's functions an array."""

    def __init__(self, there):
        self._there = there

    def block_until_ready(self):
        time.sleep(max(0.0, self._there - time.perf_counter()))

    def __array__(self, *_, **__):
        self.block_until_ready()
        return np.float32(1)


def closed_after(steps, seconds_of_data, seconds_of_step):
    window, device = MetricWindow(8), Device(seconds_of_step)
    for step in range(1, 2 + steps):
        with window.waiting():
            time.sleep(seconds_of_data)
        window.add(step, device.step())
    return window.close()


def test_waits_for_data_that_is_late():
    """Of 50 ms for a batch the device works 10."""
    values = closed_after(8, seconds_of_data=0.05, seconds_of_step=0.01)
    # A sleep on a busy machine may take some milliseconds longer.
    assert values["data_wait"] == pytest.approx(0.8, abs=0.1)
    assert values["images_per_second"] == pytest.approx(8 / 0.05, rel=0.25)


def test_a_wait_while_the_device_works_is_none():
    """The loop spends half of the time on batches, ahead of a device that is never without."""
    values = closed_after(6, seconds_of_data=0.02, seconds_of_step=0.05)
    assert values["data_wait"] < 0.15  # the first batch of the window is late
    assert values["images_per_second"] == pytest.approx(8 / 0.05, rel=0.25)


def test_time_that_is_left_out():
    window = MetricWindow(8)
    window.add(1, {"loss": jnp.float32(1)})
    with window.waiting():
        time.sleep(0.2)
    window.restart_clock()
    window.add(2, {"loss": jnp.float32(1)})
    values = window.close()
    assert values["data_wait"] == 0
    assert values["images_per_second"] > 8 / 0.2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_not_finite_is_named(value):
    window = MetricWindow(8)
    window.add(3, {"loss": jnp.float32(1), "grad_norm": jnp.float32(2)})
    window.add(4, {"loss": jnp.float32(1), "grad_norm": jnp.float32(value)})
    window.add(5, {"loss": jnp.float32(value), "grad_norm": jnp.float32(value)})
    with pytest.raises(NotFiniteError, match=f"grad_norm became {value} at step 4"):
        window.close()
