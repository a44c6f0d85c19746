"""A segmentation network learns: its gradient is that of a plain loss, and it overfits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from replk_jax.vision.label_sets import IGNORED
from tests.helpers import data_mesh
from tests.train import segmentation_sets, tiny_segmentation
from train.engine.optimizer import make_optimizer
from train.engine.step import init_state, make_train_step
from train.tasks.padded_images import normalized
from train.tasks.segmentation_config import build_loss, build_segmenter

SIDE = 32

CLASSES = len(segmentation_sets.CLASSES)


def fixed_batch(count=8):
    """Quarters of random classes, in the colours of these, with noise; the last image is padded.

    Their edges are between two logits, so logits at a quarter of the size can have all of them.
    """
    rng = np.random.default_rng(0)
    quarters = rng.integers(0, CLASSES, (count, 2, 2)).astype(np.uint8)
    mask = quarters.repeat(SIDE // 2, axis=1).repeat(SIDE // 2, axis=2)
    noise = rng.integers(-50, 50, (*mask.shape, 3))
    image = (segmentation_sets.COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)
    valid_size = np.full((count, 2), SIDE, np.int32)
    valid_size[-1] = 20, 24
    mask[-1, 20:] = mask[-1, :, 24:] = IGNORED
    image[-1, 20:] = image[-1, :, 24:] = 0
    return {"image": image, "mask": mask, "valid_size": valid_size}


def training_step(config, optimizer, dtype=np.float32):
    """The network, its first state, and its training step on one device."""
    network, mesh = build_segmenter(config, CLASSES), data_mesh(1)
    network = network.clone(dtype=dtype, param_dtype=dtype)
    state = init_state(network, optimizer, (SIDE, SIDE), config.seed, mesh)
    step = make_train_step(
        network, optimizer, build_loss(config, network), seed=config.seed, mesh=mesh
    )
    return network, state, step


def inputs(config, batch):
    return normalized(batch["image"], batch["valid_size"], config.data.mean, config.data.std)


def without_dropout():
    config = tiny_segmentation.get_config()
    config.model.replknet.drop_path_rate = config.segmenter.dropout_rate = 0.0
    return config


def cross_entropy(logits, labels):
    """As the documentation has it: over all pixels, where ignored ones count 0."""
    logits = jax.image.resize(logits, (*labels.shape, CLASSES), "bilinear", antialias=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels % IGNORED)
    return jnp.where(labels == IGNORED, 0, losses).mean()


@pytest.mark.exhaustive
def test_the_gradient_is_that_of_a_plain_loss():
    """SGD with a rate of 1 subtracts it. Float64: batch norm of few values amplifies rounding."""
    with jax.enable_x64(True):
        config, batch = without_dropout(), fixed_batch()
        network, state, step = training_step(config, optax.sgd(1.0), np.float64)
        image = inputs(config, batch).astype(np.float64)

        @jax.jit
        def plain(variables):
            def loss(params):
                (decode, auxiliary), _ = network.apply(
                    {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
                )
                terms = [cross_entropy(logits, batch["mask"]) for logits in (decode, auxiliary)]
                return terms[0] + 0.4 * terms[1]

            return jax.value_and_grad(loss)(variables["params"])

        value, gradient = plain(state.variables)
        before = jax.tree.map(np.array, state.params)
        after, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
        for expected, old, new in zip(
            *map(jax.tree.leaves, (gradient, before, after.params)), strict=True
        ):
            assert new.dtype == np.float64
            # Some constants, of batch norm or of resizing, are float32.
            bound = 1e-5 * np.abs(expected).max() + 1e-10
            np.testing.assert_allclose(old - new, expected, rtol=0, atol=bound)


@pytest.mark.slow
def test_overfits_eight_images():
    """With dropout, stochastic depth and the optimizer of the recipes; in eval mode as well."""
    config, steps = tiny_segmentation.get_config(), 80
    recipe = config.optimizer
    optimizer = make_optimizer(
        recipe.name, optax.linear_schedule(1e-2, 0.0, steps),
        weight_decay=recipe.weight_decay, decay_of=recipe.decay_of,
    )  # fmt: skip
    network, state, step = training_step(config, optimizer)
    batch = jax.device_put(fixed_batch())
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append([float(metrics[f"{head}.loss_ce"]) for head in ("decode", "aux")])
    labels = batch["mask"]
    of_a_guess = np.log(CLASSES) * float((labels != IGNORED).mean())
    assert losses[0] == pytest.approx([of_a_guess, 0.4 * of_a_guess], rel=0.05)
    assert max(np.mean(losses[-5:], axis=0)) < 0.1
    logits = jax.jit(network.apply)(state.variables, inputs(config, batch))
    assert cross_entropy(logits, labels) < 0.1
    scores = jax.image.resize(logits, (*labels.shape, CLASSES), "bilinear")
    assert ((scores.argmax(-1) == labels) | (labels == IGNORED)).mean() > 0.99
