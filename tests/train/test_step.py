"""The training step, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import replk_jax
from configs import common
from tests import golden
from tests.helpers import TINY, data_mesh
from tests.models.test_replknet_golden import load
from train import parallel
from train.errors import RunError
from train.optimizer import make_optimizer, warmup_cosine
from train.step import TrainState, init_state, make_train_step

RECIPE = common.get_config().optimizer  # AdamW's
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def batches(count, batch_size=16):
    """Images whose brightness is their label, so that there is something to learn."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = rng.integers(0, 4, batch_size)
        images = rng.integers(0, 100, (batch_size, 16, 16, 3)) + 40 * labels[:, None, None, None]
        yield {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}


def losses(devices, steps=8, seed=0):
    """The losses, the state after the last step, and the statistics after the first."""
    model = replk_jax.create_model(TINY, num_classes=4, drop_path_rate=0.1)
    mesh = data_mesh(devices)
    optimizer = make_optimizer(RECIPE, warmup_cosine(2e-3, 1e-5, 2, 8))
    state = init_state(model, optimizer, 16, seed, mesh)
    step = make_train_step(
        model, optimizer, mean=MEAN, std=STD, label_smoothing=0.1, seed=seed, mesh=mesh
    )
    curve, first = [], None
    for batch in parallel.global_batches(batches(steps), mesh):
        assert len(batch["image"].sharding.device_set) == devices
        state, metrics = step(state, batch)
        curve.append(float(metrics["loss"]))
        if first is None:
            first = jax.tree.map(np.array, state.batch_stats)
    assert int(state.step) == steps
    return curve, state, first


@pytest.mark.usefixtures("quick_compilation")
def test_eight_devices_follow_the_curve_of_one():
    """Batch norm sees the global batch and stochastic depth its rows, so only the order of sums
    differs: 2e-7 as measured, and ten to fifty times that is allowed."""
    one, _, first_of_one = losses(1)
    eight, state_of_eight, first_of_eight = losses(8)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    for leaf in jax.tree.leaves(state_of_eight):
        assert leaf.sharding.is_fully_replicated
    # Statistics before Adam, whose steps are of one size however small the gradient, has moved.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        first_of_one, first_of_eight,
    )  # fmt: skip


@golden.requires_golden
def test_three_steps_of_the_official_training():
    """Losses and statistics of PyTorch's AdamW with the official parameter groups.

    The batch there is made of multiples of 1/16, which uint8 images become again by the mean
    and deviation given here. Layer-wise decay scales each update, which AdamW's are linear in.
    """
    case = golden.small_cases()["replk_13_7_5"]
    expected = golden.arrays("small/replk_13_7_5.npz")
    recipe = case["steps"]
    model, variables = load("replk_13_7_5")

    def decay(path, leaf):
        names = [key.key for key in path]
        depth = 13
        if names[0].startswith("stem"):
            depth = 0
        elif names[0].startswith("transitions"):
            depth = (1, 2, 11)[int(names[0].split("_")[1])]
        elif names[0].startswith("stages"):
            stage, block = int(names[0].split("_")[1]), int(names[1].split("_")[1])
            depth = (1, 2, 3 + block // 4, 12)[stage]
        return recipe["layer_decay"] ** (13 - depth)

    scales = jax.tree_util.tree_map_with_path(decay, variables["params"])
    optimizer = optax.chain(
        make_optimizer(
            {**RECIPE, "weight_decay": recipe["weight_decay"]}, lambda step: recipe["lr"]
        ),
        optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, scales)),
    )
    mesh = data_mesh(1)
    state = TrainState(
        jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"])
    )
    step = make_train_step(
        model, optimizer, mean=(128 / 255,) * 3, std=(16 / 255,) * 3, label_smoothing=0.0,
        seed=0, mesh=mesh,
    )  # fmt: skip
    sixteenths = golden.nhwc(expected["train.x"]) * 16
    assert np.abs(sixteenths).max() < 128
    np.testing.assert_array_equal(sixteenths, np.round(sixteenths))
    batch = {
        "image": (sixteenths + 128).astype(np.uint8),
        "label": expected["train.labels"].astype(np.int32),
    }
    losses = []
    for _ in range(recipe["steps"] + 1):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    # Three times what the reference itself, in float32, is from float64.
    noise = 3 * case["noise"]["steps.losses_f32_minus_f64"]
    np.testing.assert_allclose(losses, expected["steps.losses"], rtol=0, atol=noise)


@pytest.mark.usefixtures("quick_compilation")
def test_runs_are_reproducible_to_the_bit():
    (one, first, _), (two, second, _) = losses(1), losses(1)
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert losses(1, seed=1)[0] != one


@pytest.mark.usefixtures("quick_compilation")
def test_loss_and_statistics_of_one_step():
    """Cross entropy with smoothed labels and the gradient's norm, computed apart."""
    model = replk_jax.create_model(TINY, num_classes=4)
    mesh = data_mesh(1)
    optimizer = make_optimizer(RECIPE, lambda step: 1e-3)
    state = init_state(model, optimizer, 16, 0, mesh)
    before = jax.tree.map(np.array, state)
    step = make_train_step(
        model, optimizer, mean=MEAN, std=STD, label_smoothing=0.2, seed=0, mesh=mesh
    )
    batch = next(batches(1))
    state, metrics = step(state, batch)

    images = ((batch["image"] / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)

    @jax.jit
    def loss(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": before.batch_stats},
            images, train=True, mutable=["batch_stats"],
        )  # fmt: skip
        log_p = jax.nn.log_softmax(logits)
        hard = -jnp.take_along_axis(log_p, batch["label"][:, None], 1).mean()
        return 0.8 * hard - 0.2 * log_p.mean(), updates["batch_stats"]

    (expected, stats), grads = jax.value_and_grad(loss, has_aux=True)(before.params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.batch_stats, stats,
    )  # fmt: skip


def test_a_batch_that_the_devices_cannot_share():
    with pytest.raises(RunError, match=r"batch of 12 .* 8 devices"):
        parallel.data_mesh(16, 12)
    assert parallel.data_mesh(16, 8).shape == {"data": 8}
