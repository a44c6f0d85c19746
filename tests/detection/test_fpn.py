"""The feature pyramid against a definition in NumPy, and nearest resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.fpn import FPN
from tests.helpers import assert_equal_in_float64

CONFIGURATIONS = {
    "FCOS": {"start_level": 1, "extra_convs": True, "relu_before_extra_convs": True},
    "without ReLU": {"start_level": 1, "extra_convs": True},
    "R-CNN": {},
}


def convolve(x, layer, stride=1):
    """With padding and bias, by a window for each position of the kernel."""
    kernel, bias = (np.asarray(layer["conv"][name]) for name in ("kernel", "bias"))
    size = kernel.shape[0]
    padded = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
    height, width = x.shape[1:3]
    total = 0
    for row, column in np.ndindex(size, size):
        window = padded[:, row : row + height : stride, column : column + width : stride]
        total = total + window @ kernel[row, column]
    return total + bias


def pyramid_of(params, maps, *, start_level, extra_convs, relu_before_extra_convs, count=5):
    """By the definition."""
    levels = [convolve(x, params[f"lateral_convs_{i}"]) for i, x in enumerate(maps[start_level:])]
    for i in reversed(range(len(levels) - 1)):
        height, width = levels[i].shape[1:3]
        rows, columns = levels[i + 1].shape[1:3]
        rows, columns = np.arange(height) * rows // height, np.arange(width) * columns // width
        levels[i] = levels[i] + levels[i + 1][:, rows][:, :, columns]
    outputs = [convolve(x, params[f"fpn_convs_{i}"], 1) for i, x in enumerate(levels)]
    for i in range(len(levels), count):
        last = outputs[-1]
        if not extra_convs:
            outputs.append(last[:, ::2, ::2])
            continue
        if relu_before_extra_convs and i > len(levels):
            last = np.maximum(last, 0)
        outputs.append(convolve(last, params[f"fpn_convs_{i}"], 2))
    return outputs


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_by_definition(name):
    """On feature maps of odd sizes; the last two are no half of each other."""
    fields = CONFIGURATIONS[name]
    rng = np.random.default_rng(0)
    sizes = ((25, 22), (13, 11), (7, 5), (3, 3))
    maps = [rng.standard_normal((2, *size, 3 + i)) for i, size in enumerate(sizes)]
    neck = FPN(channels=4, dtype=jnp.float64, param_dtype=jnp.float64, **fields)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in maps]
        shapes = jax.eval_shape(neck.init, jax.random.key(0), inputs)
        variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
        actual = jax.jit(neck.apply)(variables, inputs)
    defaults = {"start_level": 0, "extra_convs": False, "relu_before_extra_convs": False}
    expected = pyramid_of(variables["params"], maps, **{**defaults, **fields})
    assert len(actual) == 5
    for x, reference in zip(actual, expected, strict=True):
        assert_equal_in_float64(x, reference)


def test_strides():
    strides = (4, 8, 16, 32)
    assert FPN().strides(strides) == (4, 8, 16, 32, 64)
    assert FPN(start_level=1).strides(strides) == (8, 16, 32, 64, 128)
    assert FPN(num_outputs=4).strides(strides) == strides
