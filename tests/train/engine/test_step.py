"""The training step, on one device and on eight."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import replk_jax
from tests import reference_data
from tests.helpers import data_mesh
from tests.models.test_replknet_golden import load
from tests.train import tiny
from train.engine import parallel
from train.engine.freezing import Freezing
from train.engine.optimizer import make_optimizer
from train.engine.schedules import warmup_cosine
from train.engine.step import TrainState, abstract_state, init_state, make_train_step
from train.errors import RunError

# One stage has every kind of layer but a transition.
NETWORK = replk_jax.RepLKNetArchitecture((7,), (1,), (8,), small_kernel=3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def batches(count, batch_size=16):
    """Images whose brightness is their label, so that there is something to learn."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = rng.integers(0, 4, batch_size)
        images = rng.integers(0, 100, (batch_size, 16, 16, 3)) + 40 * labels[:, None, None, None]
        yield {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}


def losses(devices, steps=8, seed=0, fsdp=1, accumulation=1, **augmentation):
    """The losses, the state after the last step, and the statistics after the first."""
    model = replk_jax.create_model(NETWORK, num_classes=4, drop_path_rate=0.1)
    mesh = data_mesh(devices, fsdp)
    optimizer = make_optimizer("adamw", warmup_cosine(2e-3, 1e-5, 2, 8), weight_decay=0.05)
    state = init_state(model, optimizer, (16, 16), seed, mesh, ema=True)
    step = make_train_step(
        model, optimizer, tiny.loss(MEAN, STD, label_smoothing=0.1, **augmentation),
        seed=seed, mesh=mesh, accumulation=accumulation, ema_decay=0.9,
    )  # fmt: skip
    curve, first = [], None
    for batch in parallel.global_batches(batches(steps), mesh):
        assert len(batch["image"].sharding.device_set) == devices
        state, metrics = step(state, batch)
        curve.append(float(metrics["loss"]))
        if first is None:
            first = jax.tree.map(np.array, state.batch_stats)
    assert int(state.step) == steps
    return curve, state, first


EVERYTHING = dict(erasing_probability=0.5, mixup_alpha=0.8, cutmix_alpha=1.0, accumulation=2)


@pytest.mark.parametrize(
    ("fsdp", "settings"),
    [
        pytest.param(1, {}, id="whole", marks=pytest.mark.exhaustive),
        pytest.param(4, EVERYTHING, id="parts"),
    ],
)
def test_eight_devices_follow_the_curve_of_one(fsdp, settings, monkeypatch):
    """Whether parameters are whole on each, or in parts on four: batch norm sees the global batch,
    or micro-batch, and randomness the numbers of its rows. So only the order of sums differs, 2e-7
    as measured, and ten to fifty times that is allowed."""
    monkeypatch.setattr(parallel, "_SMALLEST_SHARDED", 64)  # the network is small
    one, state_of_one, first_of_one = losses(1, **settings)
    eight, state_of_eight, first_of_eight = losses(8, fsdp=fsdp, **settings)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    # Statistics before Adam, whose steps are of one size however small the gradient, has moved.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        first_of_one, first_of_eight,
    )  # fmt: skip
    share = held_by_a_device(state_of_eight) / held_by_a_device(state_of_one)
    assert share == 1 if fsdp == 1 else 0.25 < share < 0.5


def held_by_a_device(state):
    """Numbers of the state."""
    return sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))


@pytest.mark.usefixtures("strict_promotion")
def test_promotes_no_dtype():
    """But for optax's AdamW, which raises a float to the power of an integer, and for random
    erasing and mixing."""
    model = replk_jax.create_model(NETWORK, num_classes=4, drop_path_rate=0.1)
    optimizer, mesh = optax.sgd(0.1, momentum=0.9), data_mesh(1)
    state = abstract_state(model, optimizer, (16, 16), mesh, ema=True)
    step = make_train_step(
        model, optimizer, tiny.loss(MEAN, STD, label_smoothing=0.1),
        seed=0, mesh=mesh, accumulation=2, ema_decay=0.9,
    )  # fmt: skip
    after, metrics = jax.eval_shape(step, state, next(batches(1)))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {metric.dtype for metric in metrics.values()} == {np.dtype(np.float32)}


@reference_data.required
def test_three_steps_of_the_official_training():
    """The losses of PyTorch's AdamW with the official parameter groups.

    The batch there is made of multiples of 1/16, which uint8 images become again by the mean
    and deviation given here. Layer-wise decay scales each update, which AdamW's are linear in.
    """
    case = reference_data.small_cases()["replk_13_7_5"]
    expected = reference_data.arrays("small/replk_13_7_5.npz")
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
        make_optimizer("adamw", lambda step: recipe["lr"], weight_decay=recipe["weight_decay"]),
        optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, scales)),
    )
    mesh = data_mesh(1)
    state = TrainState(
        jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"])
    )
    step = make_train_step(
        model, optimizer, tiny.loss((128 / 255,) * 3, (16 / 255,) * 3, num_classes=10),
        seed=0, mesh=mesh,
    )  # fmt: skip
    sixteenths = reference_data.nhwc(expected["train.x"]) * 16
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


def test_runs_are_reproducible_to_the_bit():
    (one, first, _), (two, second, _) = losses(1), losses(1)
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert losses(1, seed=1)[0] != one


def test_loss_and_statistics_of_one_step():
    """Cross entropy with smoothed labels and the norms, computed apart."""
    model = replk_jax.create_model(NETWORK, num_classes=4)
    mesh = data_mesh(1)
    optimizer = make_optimizer("adamw", lambda step: 1e-3, weight_decay=0.05)
    state = init_state(model, optimizer, (16, 16), 0, mesh)
    before = jax.tree.map(np.array, state)
    step = make_train_step(
        model, optimizer, tiny.loss(MEAN, STD, label_smoothing=0.2), seed=0, mesh=mesh
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
    norm = np.sqrt(sum(np.sum(np.square(p)) for p in jax.tree.leaves(before.params)))
    np.testing.assert_allclose(metrics["param_norm"], norm, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.batch_stats, stats,
    )  # fmt: skip


def test_a_step_leaves_frozen_stages_alone():
    """The stem and the only stage, with their statistics; norm and head alone have gradients."""
    model = replk_jax.create_model(NETWORK, num_classes=4)
    mesh, freezing = data_mesh(1), Freezing(model, stages=1)
    optimizer = freezing.optimizer(make_optimizer("adamw", lambda step: 1e-2, weight_decay=0.1))
    state = init_state(model, optimizer, (16, 16), 0, mesh)
    before = jax.tree.map(np.array, state.variables)
    step = make_train_step(
        model, optimizer, tiny.loss(MEAN, STD), seed=0, mesh=mesh, freezing=freezing
    )
    state, _ = step(state, next(batches(1)))
    for collection in ("params", "batch_stats"):
        changed = {
            name
            for name, leaves in before[collection].items()
            for old, new in zip(
                jax.tree.leaves(leaves),
                jax.tree.leaves(state.variables[collection][name]),
                strict=True,
            )
            if np.any(old != new)
        }
        assert changed == ({"norm", "head"} if collection == "params" else {"norm"})


def test_accumulation_and_moving_average_by_hand():
    """Three micro-batches of every third row: gradients are averaged, statistics follow on one
    another; and the average of parameters and statistics is that of the states."""
    model = replk_jax.create_model(NETWORK, num_classes=4)
    mesh, rate, decay = data_mesh(1), 0.05, 0.8
    optimizer = optax.sgd(rate)
    state = init_state(model, optimizer, (16, 16), 0, mesh, ema=True)
    before = jax.tree.map(np.array, state)
    step = make_train_step(
        model,
        optimizer,
        tiny.loss(MEAN, STD),
        seed=0,
        mesh=mesh,
        accumulation=3,
        ema_decay=decay,
    )
    batch = next(batches(1, batch_size=12))
    state, metrics = step(state, batch)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch_stats, images, labels):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images, train=True, mutable=["batch_stats"],
        )  # fmt: skip
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    images = ((batch["image"] / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    stats, losses, gradients = before.batch_stats, [], []
    for m in range(3):
        (value, stats), grads = loss(before.params, stats, images[m::3], batch["label"][m::3])
        losses.append(value)
        gradients.append(grads)
    params = jax.tree.map(lambda p, *g: p - rate * np.mean(g, axis=0), before.params, *gradients)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    after = {"params": params, "batch_stats": stats}
    averages = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, before.variables, after)
    for actual, expected in ((state.variables, after), (state.ema, averages)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
        )


class Noisy(nn.Module):
    """A norm and dropout, with an input of its own beside the images."""

    @nn.compact
    def __call__(self, x, scale=1.0, train=False):
        x = scale * x.mean((1, 2)) * self.param("weight", nn.initializers.ones, ())
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


def two_passes(forward, key, batch):
    """The second pass has the loss of the first one as its input."""
    first = forward(batch["image"])
    second = forward(batch["image"], scale=1.0 + first.mean())
    terms = {"first": first.mean(), "second": second.mean()}
    return sum(terms.values()) + 1.0, {**terms, "kept": (first != 0).mean()}


def test_a_loss_may_run_the_network_twice():
    """Each pass drops other values, and starts from the statistics after the one before it."""
    model, mesh, images = Noisy(), data_mesh(1), np.random.default_rng(0).normal(size=(8, 4, 4, 3))
    variables = model.init(jax.random.key(0), images)
    optimizer = optax.sgd(0.0)
    state = TrainState(
        jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"])
    )
    step = make_train_step(model, optimizer, two_passes, seed=0, mesh=mesh)
    state, metrics = step(state, {"image": jnp.float32(images)})
    assert metrics.keys() == {"loss", "first", "second", "kept", "grad_norm", "param_norm"}
    first, second = (float(metrics[name]) for name in ("first", "second"))
    assert float(metrics["loss"]) == pytest.approx(first + second + 1, rel=1e-5)
    means = images.mean((1, 2))
    scale, size = 1 + first, 0.0
    for factor in (1.0, scale):  # the running mean, after both passes
        size = 0.9 * size + 0.1 * factor * means.mean(0)
    (norm,) = state.batch_stats.values()
    np.testing.assert_allclose(norm["mean"], size, rtol=1e-4, atol=1e-6)
    # With dropout alike, normalised values would be alike, and so their means.
    assert abs(second - first) > 1e-3


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"loss": 1.0}, "cannot be named 'loss'"),
        ({"penalty": 1.0}, "cannot be named 'penalty'"),
        ({"stage/loss": 1.0}, "cannot be named 'stage/loss'"),
        ({"box": jnp.zeros(3)}, r"box of a loss has shape \(3,\)"),
    ],
)
def test_terms_that_cannot_be_reported(terms, message):
    model, mesh = Noisy(), data_mesh(1)
    state = TrainState(jnp.zeros((), jnp.int32), {"weight": jnp.ones(())}, {}, optax.EmptyState())
    step = make_train_step(
        model, optax.identity(), lambda *_: (jnp.zeros(()), terms), seed=0, mesh=mesh
    )
    with pytest.raises(ValueError, match=message):
        step(state, {"image": jnp.zeros((1, 4, 4, 3))})


def test_a_network_without_batch_norm():
    class Plain(nn.Module):
        in_channels, dtype = 3, jnp.float32

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(x.mean((1, 2)))

    model, mesh, optimizer = Plain(), data_mesh(1), optax.sgd(0.1)
    state = init_state(model, optimizer, (4, 4), 0, mesh, ema=True)
    before = jax.tree.map(np.array, state.params)
    step = make_train_step(
        model, optimizer, lambda forward, key, batch: (forward(batch["image"]).mean(), {}),
        seed=0, mesh=mesh, ema_decay=0.5,
    )  # fmt: skip
    state, _ = step(state, {"image": jnp.ones((2, 4, 4, 3))})
    assert state.batch_stats == state.ema["batch_stats"] == {}
    after = jax.tree.leaves(state.params)
    assert all(np.any(old != new) for old, new in zip(jax.tree.leaves(before), after, strict=True))


def test_what_is_spread_over_devices():
    mesh = data_mesh(8, fsdp=4)
    shapes = {"kernel": (3, 3, 128, 256), "depthwise": (31, 31, 1, 128), "bias": (256,),
              "indivisible": (131, 131), "head": (256, 1000)}  # fmt: skip
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    assert {name: tuple(s.spec) for name, s in parallel.state_sharding(mesh, tree).items()} == {
        "kernel": (None, None, None, "fsdp"),
        "depthwise": (None, None, None, "fsdp"),
        "bias": (),
        "indivisible": (),
        "head": (None, "fsdp"),
    }
    assert all(not s.spec for s in parallel.state_sharding(data_mesh(8), tree).values())


def test_batches_and_rows_that_the_devices_do_not_make():
    with pytest.raises(RunError, match=r"batch of 12 .* 8 devices"):
        parallel.device_mesh(16, 12)
    with pytest.raises(RunError, match=r"mesh\.fsdp = 3 does not divide the 8 devices"):
        parallel.device_mesh(16, fsdp=3)
    assert parallel.device_mesh(16, 8, fsdp=2).shape == {"data": 4, "fsdp": 2}
