"""Layers that stand for one convolution, against compositions of lax's in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.layers import BatchNorm
from replk_jax.models.reparam_convs import (
    AsymmetricConvBlock,
    DiracConv,
    DiverseBranchBlock,
    ResidualKernelConv,
    norm_and_pad,
)
from tests.helpers import assert_equal_in_float64, conv

WIDE = dict(dtype=jnp.float64, param_dtype=jnp.float64)
INPUTS, FEATURES = 4, 6
# Kernel, stride, groups.
SETTINGS = [(3, 1, 1), (5, 2, 2)]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def random_variables(module, x, seed=1):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        return np.abs(values) + 0.1 if path[-1].key == "var" else values

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), x))


def norm(x, variables, *path):
    params, stats = variables["params"], variables["batch_stats"]
    for name in path:
        params, stats = params[name], stats[name]
    p = {name: leaf[None, None, None] for name, leaf in (params | stats).items()}
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def pad(x, margin):
    return np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def asymmetric(x, v, k, stride, groups):
    shapes = {"square": (k, k), "vertical": (k, 1), "horizontal": (1, k)}
    total = 0
    for name, (rows, columns) in shapes.items():
        kernel = v["params"][name]["conv"]["kernel"]
        assert kernel.shape == (rows, columns, INPUTS // groups, FEATURES)
        y = conv(x, kernel, stride, groups, (rows // 2, columns // 2))
        total += norm(y, v, name, "bn")
    return total


def diverse(x, v, k, stride, groups):
    """What enters the two chains is padded before all else, so that no border is an exception."""
    p = v["params"]
    origin = conv(x, p["dbb_origin"]["conv"]["kernel"], stride, groups, k // 2)
    pointwise = conv(x, p["dbb_1x1"]["conv"]["kernel"], stride, groups)

    chain = p["dbb_1x1_kxk"]
    wide = pad(x, k // 2)
    first = norm(
        wide + conv(wide, chain["idconv1"]["residual_kernel"], groups=groups),
        v, "dbb_1x1_kxk", "bn1",
    )  # fmt: skip
    chained = conv(first, chain["conv2"]["kernel"], stride, groups)

    first = norm(conv(wide, p["dbb_avg"]["conv"]["kernel"], groups=groups), v, "dbb_avg", "bn")
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(first), (k, k), (1, 2))
    averaged = windows[:, ::stride, ::stride].mean((-2, -1))
    return (
        norm(origin, v, "dbb_origin", "bn")
        + norm(pointwise, v, "dbb_1x1", "bn")
        + norm(chained, v, "dbb_1x1_kxk", "bn2")
        + norm(averaged, v, "dbb_avg", "avgbn")
    )


@pytest.mark.parametrize(("kernel_size", "stride", "groups"), SETTINGS)
@pytest.mark.parametrize(
    ("kind", "reference"), [(AsymmetricConvBlock, asymmetric), (DiverseBranchBlock, diverse)]
)
def test_both_structures(kind, reference, kernel_size, stride, groups):
    settings = dict(features=FEATURES, kernel_size=kernel_size, stride=stride, groups=groups)
    block = kind(**settings, **WIDE)
    x = images(2, 9, 6, INPUTS)
    variables = random_variables(block, x)
    expected = reference(x, variables, kernel_size, stride, groups)
    assert_equal_in_float64(jax.jit(block.apply)(variables, x), expected)
    merged = replk_jax.reparameterize(variables)
    assert set(merged["params"]) == {"conv"}
    assert_equal_in_float64(block.clone(deploy=True).apply(merged, x), expected)


@pytest.mark.parametrize("kind", [AsymmetricConvBlock, DiverseBranchBlock])
@pytest.mark.parametrize(
    ("fields", "message"),
    [({"kernel_size": 4}, "must be odd.*4"), ({"groups": 3}, "groups=3, 4 input channels")],
)
def test_impossible_blocks(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(features=FEATURES, **fields).init(jax.random.key(0), images(1, 5, 5, INPUTS))


class PaddedNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return norm_and_pad(BatchNorm(**WIDE, name="bn"), x, 2, train)


def test_border_of_a_padded_norm():
    """In training it is that of the running statistics after the step, with no gradient."""
    x = 3 + images(2, 4, 5, 3)
    module = PaddedNorm()
    variables = random_variables(module, x)

    def border(scale):
        params = {"bn": {**variables["params"]["bn"], "scale": scale}}
        changed = {**variables, "params": params}
        y, updated = module.apply(changed, x, train=True, mutable=["batch_stats"])
        return y.at[:, 2:-2, 2:-2].set(0), (y, updated)

    y, (whole, updated) = border(variables["params"]["bn"]["scale"])
    after = {"params": variables["params"], **updated}
    expected = np.broadcast_to(norm(np.zeros((1, 1, 1, 3)), after, "bn"), y.shape).copy()
    expected[:, 2:-2, 2:-2] = 0
    assert_equal_in_float64(y, expected)
    batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    by_batch = norm(x, {"params": variables["params"], "batch_stats": {"bn": batch}}, "bn")
    assert_equal_in_float64(whole[:, 2:-2, 2:-2], by_batch)
    gradient = jax.grad(lambda scale: border(scale)[0].sum())(variables["params"]["bn"]["scale"])
    np.testing.assert_array_equal(gradient, 0)


def test_residual_kernel():
    groups = 2
    x = images(2, 5, 7, INPUTS)
    layer = ResidualKernelConv(kernel_size=3, groups=groups, **WIDE)
    np.testing.assert_array_equal(layer.apply(layer.init(jax.random.key(0), x), x), x)
    variables = random_variables(layer, x)
    kernel = variables["params"]["residual_kernel"]
    assert_equal_in_float64(
        layer.apply(variables, x), x + conv(x, kernel, groups=groups, padding=1)
    )


def test_dirac_convolution():
    groups = 2
    x = images(2, 5, 7, INPUTS)
    layer = DiracConv(kernel_size=5, groups=groups, **WIDE)
    initial = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(initial["a"], 1)
    np.testing.assert_array_equal(initial["b"], 0.1)
    variables = random_variables(layer, x)
    p = variables["params"]
    lengths = np.array([np.linalg.norm(p["dirac_kernel"][..., o]) for o in range(INPUTS)])
    y = conv(x, p["dirac_kernel"], groups=groups, padding=2)
    a, b = (p[name][None, None, None] for name in "ab")
    assert_equal_in_float64(layer.apply(variables, x), a * x + b * y / lengths[None, None, None])


def test_dirac_convolution_of_a_zero_kernel():
    x = images(1, 4, 4, 2)
    layer = DiracConv()
    params = {"dirac_kernel": jnp.zeros((3, 3, 2, 2)), "a": jnp.ones(2), "b": jnp.ones(2)}
    gradient = jax.grad(lambda p: layer.apply({"params": p}, x).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(layer.apply({"params": params}, x), x, rtol=1e-6)
