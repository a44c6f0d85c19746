"""The paper's optimiser and schedule."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.variables import abstract_variables
from tests import golden
from train.optimizer import adamw, warmup_cosine

RECIPE = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.05}


@golden.requires_golden
@pytest.mark.parametrize("name", ["lr with warm-up epochs", "lr with warm-up steps", "no warm-up"])
def test_schedule_is_the_official_one(name):
    """Every value; 1e-6 of the peak is float32's rounding."""
    case = json.loads((golden.ROOT / "training/cosine_schedules.json").read_text())[name]
    arguments, expected = case["arguments"], np.array(case["values"])
    per_epoch = arguments["niter_per_ep"]
    warmup = arguments.get("warmup_steps", arguments.get("warmup_epochs", 0) * per_epoch)
    schedule = warmup_cosine(
        arguments["base_value"], arguments["final_value"], warmup, arguments["epochs"] * per_epoch
    )
    actual = [float(schedule(step)) for step in range(len(expected))]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * arguments["base_value"])


def test_schedule_stays_at_its_end():
    schedule = warmup_cosine(1.0, 0.1, 2, 10)
    assert float(schedule(10)) == float(schedule(50)) == pytest.approx(0.1)


def test_adamw_against_the_formula():
    """Loshchilov & Hutter, algorithm 2, in float64; one tensor decays and one does not."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)}
    schedule = warmup_cosine(0.01, 1e-4, 3, 20)
    optimizer = adamw(RECIPE, schedule)
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    actual = jax.tree.map(jnp.float32, params)
    moments = {name: (0.0, 0.0) for name in params}
    for step in range(5):
        grads = {name: rng.standard_normal(leaf.shape) for name, leaf in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, actual)
        actual = jax.tree.map(jnp.add, actual, updates)
        rate = float(schedule(step))
        for name, grad in grads.items():
            m = 0.9 * moments[name][0] + 0.1 * grad
            v = 0.999 * moments[name][1] + 0.001 * grad**2
            moments[name] = m, v
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            decay = 0.05 if name == "kernel" else 0.0
            params[name] = params[name] - rate * (
                m_hat / (np.sqrt(v_hat) + 1e-8) + decay * params[name]
            )
    for name in params:
        np.testing.assert_allclose(actual[name], params[name], rtol=1e-5, atol=1e-6)


@golden.requires_golden
def test_the_same_parameters_decay_as_in_the_official_groups():
    """With gradients of zero only the decay moves a parameter."""
    groups = json.loads((golden.ROOT / "training/param_groups_31b_no_layer_decay.json").read_text())
    expected = {name for group in groups for name in group["params"] if group["weight_decay"] > 0}
    params = abstract_variables(replk_jax.create_model("replknet_31b"))["params"]
    small = jax.tree.map(lambda leaf: jnp.ones((1,) * len(leaf.shape)), params)
    optimizer = adamw(RECIPE, lambda step: 0.1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, small), optimizer.init(small), small)
    moved = {
        name
        for name, update in golden.by_official_name({"params": updates}).items()
        if np.any(update != 0)
    }
    assert moved == expected
