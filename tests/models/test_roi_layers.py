"""Layers of heads that see regions of interest, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.models.layers import BatchNorm
from replk_jax.models.roi_layers import ClassConv2D, Linear, Upsampling2D


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_linear():
    x, kernel, bias = random(3, 4), random(4, 5), random(5)
    y = Linear(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, x.astype(float) @ kernel + bias, atol=1e-5)


def test_upsampling():
    """As PyTorch's ConvTranspose2d with a weight (I, O, 2, 2), whose axes are reversed here."""
    x, weight, bias = random(2, 3, 4, 5), random(5, 6, 2, 2), random(6)
    kernel = weight.transpose(2, 3, 1, 0)
    y = Upsampling2D(6).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.tile(bias.astype(float), (2, 6, 8, 1))
    for i in range(3):
        for j in range(4):
            for a in range(2):
                for b in range(2):
                    expected[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ weight[:, :, a, b]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_one_class_of_each_example():
    """Also the gradients, of which the other classes get none."""
    x, classes = random(3, 2, 2, 4), np.asarray([4, 0, 4])
    params = {"kernel": random(1, 1, 4, 6), "bias": random(6)}
    module = ClassConv2D(6)

    def all_classes(params, x):
        y = module.apply({"params": params}, x)
        return jnp.stack([y[i, ..., k] for i, k in enumerate(classes)])

    def one_class(params, x):
        return module.apply({"params": params}, x, classes)

    np.testing.assert_allclose(one_class(params, x), all_classes(params, x), atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda *args, run=run: jnp.sum(jnp.sin(run(*args))), (0, 1)))(params, x)
        for run in (one_class, all_classes)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_batch_norm_leaves_out_padding():
    """Output, statistics and gradients are those of the valid rows alone."""
    x, valid = random(5, 2, 2, 3), np.asarray([True, False, True, True, False])
    x[~valid] = 1e6
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x)

    weights = random(5, 2, 2, 3)

    @jax.jit
    def run(x, weights, valid=None):
        def total(x):
            y, updated = module.apply(variables, x, True, valid, mutable=["batch_stats"])
            return jnp.sum(y * weights), updated

        return jax.value_and_grad(total, has_aux=True)(x)

    # The loss sees only valid rows.
    padded, of_padded = run(x, np.where(valid[:, None, None, None], weights, 0), valid)
    alone, of_alone = run(x[valid], weights[valid])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded, alone)
    np.testing.assert_allclose(np.asarray(of_padded)[valid], of_alone, atol=1e-5)
    assert not np.any(np.asarray(of_padded)[~valid])


@pytest.mark.parametrize("count", [0, 1])
def test_batch_norm_of_hardly_any_rows_is_finite(count):
    x, module = random(4, 3), BatchNorm()
    variables = module.init(jax.random.key(0), x)
    valid = np.arange(4) < count
    y, updated = module.apply(variables, x, True, valid, mutable=["batch_stats"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((y, updated)))
