"""No layer and no network sums 16-bit values in 16 bits, over space or batch, in either pass."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr

import replk_jax
from replk_jax.models import registry
from replk_jax.models.layers import BatchNorm, Conv2D, DropPath, GlobalAveragePool
from replk_jax.models.reparam_convs import _average_pool
from replk_jax.models.repvgg import SqueezeExcite
from replk_jax.models.variables import abstract_variables
from tests.miniatures import miniature, registered, repvgg_variants

MAP = (32, 64, 64, 2)  # 2^17 terms per channel
HALVES = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
)


def draw(shape, dtype, seed, size=1.0):
    """Positive, so that no sum is small by cancellation."""
    values = np.random.default_rng(seed).uniform(0.5 * size, 1.5 * size, shape)
    return jnp.asarray(values, dtype)


def wide(array):
    return np.asarray(array, np.float64)


def gradients(layer, variables, x, g, **how):
    """Those of `sum(g * layer(x))` for the parameters and for x."""

    def apply(params, x):
        y = layer.apply({**variables, "params": params}, x, **how)
        return y[0] if isinstance(y, tuple) else y

    @jax.jit
    def run(params, x, g):
        _, pull_back = jax.vjp(apply, params, x)
        return pull_back(g)

    return run(variables["params"], x, g)


def close(actual, expected, dtype):
    """Within two roundings to the 16-bit type."""
    np.testing.assert_allclose(wide(actual), expected, rtol=float(jnp.finfo(dtype).eps) + 2e-4)


@HALVES
@pytest.mark.parametrize(("size", "groups"), [(1, 1), (3, 1), (3, 2)])
def test_convolution(size, groups, dtype):
    layer = Conv2D(2, (size, size), padding=size // 2, groups=groups, dtype=dtype)
    x, g = draw(MAP, dtype, 0, 0.1), draw(MAP, dtype, 1, 0.01)
    variables = {
        "params": {
            "kernel": jnp.ones((size, size, 2 // groups, 2)),
            "bias": jnp.ones(2),
        }
    }
    params, _ = gradients(layer, variables, x, g)
    close(params["bias"], wide(g).sum((0, 1, 2)), dtype)
    center = params["kernel"][size // 2, size // 2]
    products = np.einsum("nhwi,nhwo->io", wide(x), wide(g))
    close(center, products if groups == 1 else products.diagonal()[None], dtype)


@HALVES
def test_batch_norm(dtype):
    """In eval mode, where the gradients are simple; those of training take the same sums."""
    norm = BatchNorm(dtype=dtype)
    x, g = draw(MAP, dtype, 0), draw(MAP, dtype, 1, 0.01)
    variables = norm.init(jax.random.key(0), x)
    params, _ = gradients(norm, variables, x, g)
    close(params["bias"], wide(g).sum((0, 1, 2)), dtype)
    normalized = wide(x) / np.sqrt(1 + 1e-5)
    close(params["scale"], (normalized * wide(g)).sum((0, 1, 2)), dtype)


@HALVES
def test_batch_norm_in_training(dtype):
    norm = BatchNorm(dtype=dtype)
    x, g = draw(MAP, dtype, 0), draw(MAP, dtype, 1, 0.01)
    variables = norm.init(jax.random.key(0), x)
    mean, var = wide(x).mean((0, 1, 2)), wide(x).var((0, 1, 2))
    _, updated = jax.jit(partial(norm.apply, train=True, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-4)
    params, _ = gradients(norm, variables, x, g, train=True, mutable=["batch_stats"])
    close(params["bias"], wide(g).sum((0, 1, 2)), dtype)
    normalized = (wide(x) - mean) / np.sqrt(var + 1e-5)
    expected = (normalized * wide(g)).sum((0, 1, 2))
    terms = np.abs(normalized * wide(g)).sum((0, 1, 2))
    assert (np.abs(wide(params["scale"]) - expected) < 1e-4 * terms).all()


@HALVES
def test_squeeze_excite(dtype):
    """With gates of 1/2: the gradient of the bias of `up` has 2^17 terms, 64 from each of 2048
    images."""
    shape = (2048, 8, 8, 16)
    layer = SqueezeExcite(dtype=dtype)
    x, g = draw(shape, dtype, 0), draw(shape, dtype, 1, 0.01)
    variables = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x))
    params, _ = gradients(layer, variables, x, g)
    slope = 0.25  # of the sigmoid at 0
    expected = slope * (wide(x) * wide(g)).sum((0, 1, 2))
    # The sum of every map is rounded to the 16-bit type once more on the way.
    close(params["up"]["bias"], expected, dtype)


@HALVES
def test_average_pool(dtype):
    x = draw((1, 512, 512, 1), dtype, 0)
    pool = jax.jit(lambda x: _average_pool(x, 512, 1, 1))
    close(pool(x), wide(x).mean((1, 2), keepdims=True), dtype)


@HALVES
def test_global_average_pool(dtype):
    x = draw((1, 512, 256, 2), dtype, 0)
    y = jax.jit(GlobalAveragePool().apply)({}, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, wide(x).mean((1, 2)), rtol=1e-4)


def reductions_in_16_bits(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of the operations that accumulate 16-bit values, in a program and all it calls.

    Convolutions and dot products are not among them: XLA accumulates those in float32.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        reduces = any(part in name for part in ("sum", "prod", "cum", "scatter", "select_and"))
        dtypes = {getattr(operand.aval, "dtype", None) for operand in equation.invars}
        if reduces and dtypes & {jnp.dtype("bfloat16"), jnp.dtype("float16")}:
            yield name
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from reductions_in_16_bits(inner)


def test_reductions_are_found():
    """The fault that these tests look for, as Flax has it in `nn.Conv`."""
    x, bias = jnp.ones((2, 3), "bfloat16"), jnp.ones((1, 3), "bfloat16")
    program = jax.make_jaxpr(jax.jit(jax.grad(lambda b: jnp.sum((x + b).astype("float32")))))(bias)
    assert "reduce_sum" in set(reductions_in_16_bits(program.jaxpr))


NETWORKS = {
    name: miniature(registry.ARCHITECTURES[name])
    for name in ("replknet_31b", "repvgg_d2se", "mobilenet_v2_13_reparam", "resnet_101")
} | repvgg_variants()
EXHAUSTIVE = [
    pytest.param(architecture, id=name, marks=pytest.mark.exhaustive)
    for name, architecture in registered().items()
    if architecture not in NETWORKS.values()
]


@pytest.mark.parametrize("deploy", [False, True], ids=["training", "merged"])
@pytest.mark.parametrize(
    "architecture", [*(pytest.param(each, id=name) for name, each in NETWORKS.items()), *EXHAUSTIVE]
)
def test_no_network_has_one(architecture, deploy):
    """A forward and backward pass, traced. Depthwise convolutions have tests of their own."""
    model = replk_jax.create_model(architecture, num_classes=4, dtype=jnp.bfloat16)
    if deploy and not model.mergeable:
        pytest.skip("has no merged structure")
    model = model.clone(deploy=deploy)
    if hasattr(model, "drop_path_rate"):
        model = model.clone(drop_path_rate=0.5)
    variables = abstract_variables(model, (32, 32))
    images = jax.ShapeDtypeStruct((4, 32, 32, model.in_channels), jnp.bfloat16)

    def loss(params, rest, images):
        logits, _ = model.apply(
            {"params": params, **rest},
            images,
            train=not deploy,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.mean(logits)

    rest = {name: each for name, each in variables.items() if name != "params"}
    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], rest, images)
    # The windows of ResNet's max pool overlap: a pixel is the largest of four windows at most.
    allowed = {"select_and_scatter_add"}
    assert set(reductions_in_16_bits(program.jaxpr)) <= allowed


def test_drop_path_sums_nothing():
    layer = DropPath(0.5)
    x = jax.ShapeDtypeStruct((8, 4, 4, 2), jnp.bfloat16)

    def total(x):
        y = layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(y.astype(jnp.float32))

    assert not set(reductions_in_16_bits(jax.make_jaxpr(jax.grad(total))(x).jaxpr))
