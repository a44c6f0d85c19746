"""PyTorch's conventions, each against numbers computed apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from replk_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    DropPath,
    GlobalAveragePool,
    GroupNorm,
    pytorch_init,
)
from tests.helpers import assert_equal_in_float64, data_mesh


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_batch_norm_statistics_are_pytorchs():
    """Momentum 0.1, unbiased running variance, biased variance in the output."""
    x = 3 + 2 * draw(3, 4, 5, 6)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    wide = np.float64(x).reshape(-1, 6)
    mean, var = wide.mean(0), wide.var(0)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_norm_survives_a_mean_far_from_zero():
    """The one-pass variance loses all digits here and gives 1, 2 or 3 instead of 1."""
    x = 3e3 + draw(8, 16, 16, 2)
    norm = BatchNorm()
    _, updated = norm.apply(norm.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"])
    expected = 0.9 + 0.1 * np.float64(x).reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-4)


def test_batch_norm_keeps_statistics_in_float32():
    norm = BatchNorm(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = draw(4, 3, 3, 2).astype(jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["scale"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


def test_batch_norm_does_not_narrow_a_wide_computation():
    with jax.enable_x64(True):
        x = 1 + 1e-10 * np.arange(4.0)[:, None]
        norm = BatchNorm(dtype=jnp.float64)
        y = norm.apply(norm.init(jax.random.key(0), x), x)
        np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-7)
        assert np.ptp(y) == pytest.approx(3e-10, rel=1e-3)


def test_batch_norm_refuses_to_train_on_one_value():
    norm = BatchNorm()
    x = draw(1, 1, 1, 4)
    variables = norm.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="one value per channel"):
        norm.apply(variables, x, train=True, mutable=["batch_stats"])


def test_runs_without_jit_on_several_devices():
    """As `JAX_DISABLE_JIT=1` has it: batch statistics and gradients are those of all images."""
    mesh, layer = data_mesh(4), ConvNorm(features=4, kernel_size=3, depthwise=True)
    x = draw(4, 5, 5, 4)
    variables = layer.init(jax.random.key(0), x)

    def gradients(params, x):
        def loss(params, x):
            y, updated = layer.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), updated

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    expected = jax.jit(gradients)(variables["params"], x)
    with jax.disable_jit():
        params = jax.device_put(variables["params"], NamedSharding(mesh, PartitionSpec()))
        actual = gradients(params, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_stride_2_pads_both_sides():
    """XLA's "SAME" would pad an even map on one side only, and shift every feature."""
    layer = ConvNorm(features=1, kernel_size=3, stride=2, deploy=True)
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 0, 0] = 1
    variables = layer.init(jax.random.key(0), x)
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    variables = {"params": {"conv": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}}
    y = layer.apply(variables, x)
    assert y.shape == (1, 2, 2, 1)
    assert y[0, 0, 0, 0] == kernel[1, 1, 0, 0]


@pytest.mark.parametrize("depthwise", [False, True])
def test_initialisation_is_pytorchs(depthwise):
    """Uniform within 1 / sqrt(fan-in): the bound is reached and the variance is bound^2 / 3."""
    layer = ConvNorm(features=64, kernel_size=5, depthwise=depthwise, deploy=True)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))["params"]["conv"]
    bound = 1 / np.sqrt(25 * (1 if depthwise else 64))
    for leaf in params.values():
        assert np.abs(leaf).max() <= bound
    np.testing.assert_allclose(np.abs(params["kernel"]).max(), bound, rtol=0.01)
    np.testing.assert_allclose(np.var(params["kernel"]), bound**2 / 3, rtol=0.1)


def test_init_depends_on_the_key():
    init = pytorch_init(9)
    draws = [init(jax.random.key(seed), (100,)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = np.ones((4000, 2, 2, 3), np.float32)
    y = DropPath(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    per_image = np.asarray(y).reshape(4000, -1)
    assert (per_image == per_image[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_image), [0, 4 / 3], rtol=1e-6)
    # Four standard deviations of the mean of 4000 draws.
    assert abs(per_image.mean() - 1) < 4 * np.sqrt(0.25 * 0.75 / 4000) / 0.75
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x), x)


def test_pool_sums_bfloat16_in_float32():
    x = (100 + draw(1, 64, 64, 2)).astype(jnp.bfloat16)
    y = GlobalAveragePool().apply({}, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.float64(x).mean((1, 2)), rtol=1e-5)


def test_group_norm_by_definition():
    """Groups of neighbouring channels, in each image alone; means far from 0."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 12)) * rng.uniform(0.1, 3, 12) + 50
    scale, bias = rng.standard_normal((2, 12))
    norm = GroupNorm(num_groups=3, dtype=jnp.float64, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
        y = jax.jit(norm.apply)({"params": params}, jnp.asarray(x))
    groups = x.reshape(2, 15, 3, 4)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias
    assert_equal_in_float64(y, expected)


def test_group_norm_of_channels_that_do_not_fit():
    with pytest.raises(ValueError, match="needs a multiple of 5 channels; got 12"):
        jax.eval_shape(GroupNorm(num_groups=5).init, jax.random.key(0), jnp.zeros((1, 2, 2, 12)))
