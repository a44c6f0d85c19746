"""What runs on a GPU is what runs on the CPU. Needs jax, flax, optax, chex, numpy and pytest."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.benchmark.network_programs import draw_inputs
from replk_jax.benchmark.profile import profile_network
from tests.helpers import TINY, random_images, random_variables

try:
    GPU, CPU = jax.devices("gpu")[0], jax.devices("cpu")[0]
except RuntimeError:
    GPU = None

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU is None, reason="JAX finds no GPU on this machine"),
]


@pytest.fixture(autouse=True)
def float32_products():
    """By default a GPU rounds the operands of float32 products to ten bits."""
    with jax.default_matmul_precision("highest"):
        yield


def on(device, function, *arguments):
    """The result of a function compiled for a device."""
    return jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(14, 31, 1), (15, 5, 1), (16, 3, 2)])
def test_depthwise_conv2d_and_its_gradients(size, kernel, stride):
    x, w = draw(2, size, size, 6), draw(kernel, kernel, 1, 6, seed=1)

    def run(x, w):
        def loss(x, w):
            y = replk_jax.depthwise_conv2d(x, w, stride=stride, padding=kernel // 2)
            return jnp.sum(y**2), y

        (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)
        return y, *grads

    for actual, expected in zip(on(GPU, run, x, w), on(CPU, run, x, w), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(("name", "size"), [("tiny", 32), ("replknet_31b", 96)])
def test_outputs(name, size, deploy):
    model = replk_jax.create_model(TINY if name == "tiny" else name, num_classes=10)
    variables, images = random_variables(model), random_images(model, 2, size)
    if deploy:
        model, variables = model.clone(deploy=True), replk_jax.reparameterize(variables)
    actual, expected = (on(device, model.apply, variables, images) for device in (GPU, CPU))
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("platforms", "batch_size"), [(("cpu", "cuda"), None), (("cuda",), 16)])
def test_exported(platforms, batch_size):
    """The portable program at several batch sizes, and the one with kernels of our own."""
    model = replk_jax.create_model(TINY, num_classes=10)
    variables = random_variables(model)
    exported = replk_jax.export_model(
        model,
        variables,
        image_size=32,
        batch_size=batch_size,
        platforms=platforms,
        custom_calls=batch_size is not None,
    )
    program = jax.export.deserialize(bytearray(exported.serialize()))
    for count in (1, 3, 8) if batch_size is None else (batch_size,):
        images = random_images(model, count)
        expected = on(CPU, model.apply, variables, images)
        actual = jax.jit(program.call)(jax.device_put(images, GPU))
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_bfloat16():
    model = replk_jax.create_model(TINY, num_classes=10)
    variables, images = random_variables(model), random_images(model)
    half = model.clone(dtype=jnp.bfloat16)
    actual, expected = (
        on(GPU, half.apply, variables, images),
        on(CPU, model.apply, variables, images),
    )
    np.testing.assert_allclose(actual, expected, atol=0.05 * np.abs(expected).max())


def test_gradients_and_statistics():
    model = replk_jax.create_model(TINY, num_classes=10)
    variables, images = random_variables(model), random_images(model, 8)

    def run(variables, images):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(logits**2), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    (grads, stats), (expected_grads, expected_stats) = (
        on(device, run, variables, images) for device in (GPU, CPU)
    )
    chex.assert_trees_all_close(stats, expected_stats, rtol=1e-4, atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-3, atol=1e-4 * largest)


def test_profile(tmp_path):
    """The kernels in a trace are operations of the program, and most are of a layer."""
    model = replk_jax.create_model("replknet_31b", dtype=jnp.bfloat16)
    variables, images = jax.device_put(draw_inputs(model, 16, 64), GPU)
    profile = profile_network("inference-merged", model, variables, images, tmp_path)
    layers = {cost.operation.layer for cost in profile.costs}
    assert {f"stages_{stage}/blocks_0../pw1/conv" for stage in range(4)} <= layers
    assert all(cost.operation.kernel for cost in profile.costs)
    assert profile.unknown < 0.1
    total = sum(cost.seconds for cost in profile.costs)
    assert sum(cost.seconds for cost in profile.costs if cost.operation.layer) > 0.8 * total > 0
