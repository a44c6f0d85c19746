"""The losses of detectors in float64 against their definitions, and gradients by differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.losses import (
    binary_cross_entropy,
    giou_loss,
    iou_loss,
    sigmoid_focal_loss,
    smooth_l1,
)
from tests.helpers import assert_equal_in_float64
from tests.ops.detection_reference import overlap


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def entropy(x, t):
    return -(t * np.log(sigmoid(x)) + (1 - t) * np.log(sigmoid(-x)))


def focal(x, t, alpha=0.25, gamma=2.0):
    right = np.where(t > 0, sigmoid(x), sigmoid(-x))
    return -np.where(t > 0, alpha, 1 - alpha) * (1 - right) ** gamma * np.log(right)


def of_boxes(function):
    return lambda a, b: np.array([function(*pair) for pair in zip(a, b, strict=True)])


def huber(x, t, beta):
    d = np.abs(x - t)
    return np.where(d < beta, d**2 / (2 * beta), d - beta / 2) if beta else d


RNG = np.random.default_rng(0)
VALUES, OTHERS = 3 * RNG.standard_normal((2, 40))
CORNERS = RNG.uniform(0, 50, (2, 40, 2))
BOXES, TARGETS = np.concatenate([CORNERS, CORNERS + RNG.uniform(5, 60, CORNERS.shape)], axis=-1)
BITS = RNG.integers(0, 2, 40)
CASES = {
    "binary cross entropy": (binary_cross_entropy, entropy, VALUES, sigmoid(OTHERS)),
    "of bits": (binary_cross_entropy, entropy, VALUES, BITS > 0),
    "focal": (sigmoid_focal_loss, focal, VALUES, BITS),
    "another focal": (
        partial(sigmoid_focal_loss, alpha=0.6, gamma=1.5),
        partial(focal, alpha=0.6, gamma=1.5),
        VALUES,
        BITS > 0,
    ),
    "IoU": (
        iou_loss,
        of_boxes(lambda a, b: -np.log(max(overlap(a, b), 1e-6))),
        BOXES,
        TARGETS,
    ),
    "GIoU": (giou_loss, of_boxes(lambda a, b: 1 - overlap(a, b, "giou")), BOXES, TARGETS),
    "smooth L1": (smooth_l1, partial(huber, beta=1), VALUES, OTHERS),
    "of a small beta": (partial(smooth_l1, beta=1 / 9), partial(huber, beta=1 / 9), VALUES, OTHERS),
    "L1": (partial(smooth_l1, beta=0), partial(huber, beta=0), VALUES, OTHERS),
}


@pytest.mark.parametrize("case", CASES)
def test_by_definition(case):
    loss, definition, values, targets = CASES[case]
    with jax.enable_x64(True):
        inputs = jnp.asarray(values), jnp.asarray(targets)

        @jax.jit
        def run(values, targets):
            y, pull_back = jax.vjp(lambda x: loss(x, targets), values)
            return y, pull_back(jnp.ones_like(y))[0]

        actual, gradients = run(*inputs)
    assert_equal_in_float64(actual, definition(values, targets))
    # Elements do not depend on each other: one difference for each coordinate serves all.
    step = 1e-6
    for axis in range(1 if values.ndim == 1 else 4):
        shift = step if values.ndim == 1 else step * np.eye(4)[axis]
        ends = (definition(values + sign * shift, targets) for sign in (1, -1))
        expected = np.subtract(*ends) / (2 * step)
        found = gradients if values.ndim == 1 else gradients[:, axis]
        np.testing.assert_allclose(found, expected, atol=1e-7 * max(1, np.abs(expected).max()))


def test_extreme_logits():
    logits = jnp.asarray([-1e4, -200.0, 0.0, 200.0, 1e4])

    @jax.jit
    def run(logits):
        return [
            jax.vmap(jax.value_and_grad(loss))(logits, jnp.full(5, target))
            for target in (1, 0)
            for loss in (binary_cross_entropy, sigmoid_focal_loss)
        ]

    results = run(logits)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    np.testing.assert_allclose(results[0][0], [1e4, 200, np.log(2), 0, 0], rtol=1e-6)


def test_boxes_apart_and_empty():
    """-log of the least IoU, without a gradient; GIoU still has one."""
    boxes, targets = jnp.asarray([[0.0, 0, 1, 1], [0, 0, 0, 0]]), jnp.asarray([[5.0, 5, 9, 9]] * 2)

    @jax.jit
    def run(boxes):
        return [
            jax.value_and_grad(lambda boxes, loss=loss: jnp.mean(loss(boxes, targets)))(boxes)
            for loss in (iou_loss, giou_loss)
        ]

    (loss, gradient), (_, of_giou) = run(boxes)
    np.testing.assert_allclose(loss, -np.log(1e-6), rtol=1e-6)
    assert not np.any(gradient)
    assert np.isfinite(of_giou).all()
    assert np.any(of_giou)


@pytest.mark.parametrize("loss", [binary_cross_entropy, sigmoid_focal_loss, smooth_l1])
def test_16_bits_become_32(loss, strict_promotion):
    x = jnp.asarray([0.5, -2.0], jnp.bfloat16)
    y = jax.jit(loss)(x, jnp.asarray([1.0, 0.0], jnp.bfloat16))
    assert y.dtype == jnp.float32
