"""What several test files need."""

import jax
import numpy as np
from flax import traverse_util

from replk_jax import RepLKNetArchitecture
from replk_jax.io.tensors import StoredTensor
from replk_jax.models.variables import abstract_variables

TINY = RepLKNetArchitecture((7, 5), (1, 1), (8, 12), small_kernel=3)
ONE_STAGE = RepLKNetArchitecture((5,), (1,), (8,), small_kernel=3)  # compiled in half the time


def random_variables(model, seed=0):
    """Variables of a model, as `draw_variables` makes them."""
    return draw_variables(abstract_variables(model), seed)


def draw_variables(abstract, seed):
    """Variables far from their initial values, so that no error can hide.

    Kernels keep the signal's size; batch norms have negative scales, variances from nothing to
    2 and means and offsets that are not zero; residual branches end small, so that the depth of
    a network does not blow up what passes it.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        shape, last = leaf.shape, path[-1]
        if last == "var":
            tiny = rng.choice([0, 1e-12, 1e-6, 1e-4], shape)
            value = np.where(rng.random(shape) < 0.2, tiny, rng.uniform(0.5, 2, shape))
        elif last == "mean":
            value = 0.1 * rng.standard_normal(shape)
        elif last == "bias":
            value = 0.2 * rng.standard_normal(shape)
        elif last == "scale":
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([1, 1, 1, -1], shape)
            if path[-3:-1] == ("pw2", "bn"):
                value *= 0.2
        else:
            fan_in = np.prod(shape[:-1])
            value = rng.standard_normal(shape) * (1.4 / np.sqrt(fan_in))
        return np.asarray(value, leaf.dtype)

    flat = traverse_util.flatten_dict(abstract)
    variables = {path: draw(path, leaf) for path, leaf in sorted(flat.items())}
    # Kernels have unit variance: a channel whose statistics say otherwise would multiply the
    # signal by up to three hundred, so its scale makes good for it.
    for path in variables:
        if path[-1] == "var":
            scale = ("params", *path[1:-1], "scale")
            deviation = np.sqrt(np.float64(variables[path]) + 1e-5)
            damped = variables[scale] * np.minimum(1, deviation)
            variables[scale] = damped.astype(variables[scale].dtype)
    return traverse_util.unflatten_dict(variables)


def random_images(model, batch=2, size=32, seed=0):
    """Normalised images (N, H, W, C); `size` is one number or (H, W)."""
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, height, width, model.in_channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(model.dtype)


def data_mesh(devices, fsdp=1):
    """The mesh that training would have if there were only so many devices."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    shape = (devices // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), auto, devices=jax.devices()[:devices])


def conv(x, kernel, stride=1, groups=1, padding=0):
    """lax's convolution of (N, H, W, I) and (rows, columns, I / groups, O)."""
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(rows, rows), (columns, columns)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def assert_equal_in_float64(actual, expected):
    """Within 1e-10 of the largest value: what some twenty layers, or a few thousand products,
    round."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def assert_same_bits(stored, expected):
    """A tensor in a file is an array, with its own memory."""
    assert isinstance(stored, StoredTensor)
    assert (stored.shape, stored.dtype) == (expected.shape, expected.dtype)
    assert (stored.size, stored.ndim, stored.nbytes) == (
        expected.size, expected.ndim, expected.nbytes,
    )  # fmt: skip
    value = stored.read()
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    assert value.flags.c_contiguous
    assert value.flags.writeable
    assert value.tobytes() == expected.tobytes()
