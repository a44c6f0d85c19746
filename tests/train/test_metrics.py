"""The window between two reports."""

import jax.numpy as jnp
import pytest

from train.metrics import MetricWindow, NotFiniteError


def test_averages_and_speed():
    window = MetricWindow(8)
    for step, loss in ((1, 1.0), (2, 2.0), (3, 6.0)):
        window.add(step, {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)})
    values = window.close()
    assert values["train/loss"] == 3
    assert values["train/grad_norm"] == 1
    assert values["images_per_second"] > 0
    window.add(4, {"loss": jnp.float32(5), "grad_norm": jnp.float32(1)})
    assert window.close()["train/loss"] == 5


def test_the_first_step_compiles_and_is_not_timed():
    window = MetricWindow(8)
    window.add(1, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)})
    assert "images_per_second" not in window.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_not_finite_is_named(value):
    window = MetricWindow(8)
    window.add(3, {"loss": jnp.float32(1), "grad_norm": jnp.float32(2)})
    window.add(4, {"loss": jnp.float32(1), "grad_norm": jnp.float32(value)})
    window.add(5, {"loss": jnp.float32(value), "grad_norm": jnp.float32(value)})
    with pytest.raises(NotFiniteError, match=f"grad_norm became {value} at step 4"):
        window.close()
