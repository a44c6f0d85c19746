"""Each step of the algebra against the two computations that it says are one, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replk_jax.reparam import algebra
from replk_jax.reparam.algebra import Affine, Linear

# Sums of some hundred products of numbers around one: 1e-12 is thousands of roundings.
TOLERANCE = 1e-12


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def conv(x, linear, *, stride=1, padding=0, dilation=1):
    """A convolution by definition: a sum over the taps, with the groups that the shapes tell."""
    kernel, bias = (None if leaf is None else np.asarray(leaf) for leaf in linear)
    rows, columns, per_group, outer = kernel.shape
    groups = x.shape[-1] // per_group
    x = np.pad(np.asarray(x), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    height = (x.shape[1] - dilation * (rows - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation * (columns - 1) - 1) // stride + 1
    y = np.zeros((x.shape[0], height, width, outer))
    for i in range(rows):
        for j in range(columns):
            top, left = dilation * i, dilation * j
            tap = x[:, top : top + stride * height : stride, left : left + stride * width : stride]
            for g in range(groups):
                ins = slice(g * per_group, (g + 1) * per_group)
                outs = slice(g * outer // groups, (g + 1) * outer // groups)
                y[..., outs] += tap[..., ins] @ kernel[i, j, :, outs]
    return y if bias is None else y + bias


def scaled(x, affine):
    """a x + b on each channel, in NumPy."""
    return np.asarray(x) * np.asarray(affine.scale) + np.asarray(affine.bias)


def draw(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape))


def linear(rng, size, inputs, outputs, groups=1, bias=True):
    kernel = draw(rng, *size, inputs // groups, outputs)
    return Linear(kernel, draw(rng, outputs) if bias else None)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


# Inputs per group, outputs per group, groups: dense, grouped and depthwise convolutions.
CHANNELS = st.sampled_from([(3, 4, 1), (2, 3, 2), (3, 1, 4), (1, 1, 6), (1, 2, 3)])
SEEDS = st.integers(0, 2**16)
quick = settings(max_examples=12, deadline=None)


@given(channels=CHANNELS, size=st.sampled_from([1, 3, 5]), bias=st.booleans(), seed=SEEDS)
def test_fold_into_previous(channels, size, bias, seed):
    rng = np.random.default_rng(seed)
    inner, outer, groups = channels
    w = linear(rng, (size, size), inner * groups, outer * groups, groups, bias)
    affine = Affine(draw(rng, outer * groups), draw(rng, outer * groups))
    x = draw(rng, 2, 7, 6, inner * groups)
    expected = scaled(conv(x, w, padding=size // 2), affine)
    close(conv(x, algebra.fold_into_previous(w, affine), padding=size // 2), expected)


@given(channels=CHANNELS, size=st.sampled_from([1, 3, 5]), bias=st.booleans(), seed=SEEDS)
def test_fold_into_next(channels, size, bias, seed):
    """Any kernel, where the convolution does not pad."""
    rng = np.random.default_rng(seed)
    inner, outer, groups = channels
    w = linear(rng, (size, size), inner * groups, outer * groups, groups, bias)
    affine = Affine(draw(rng, inner * groups), draw(rng, inner * groups))
    x = draw(rng, 2, 7, 6, inner * groups)
    expected = conv(scaled(x, affine), w)
    merged = algebra.fold_into_next(affine, w, zero_padding=False)
    close(conv(x, merged), expected)
    if size == 1:  # no kernel sees a border
        close(conv(x, algebra.fold_into_next(affine, w)), expected)


def test_fold_into_next_is_refused_before_zero_padding():
    rng = np.random.default_rng(0)
    w, affine = linear(rng, (3, 3), 4, 4), Affine(draw(rng, 4), draw(rng, 4))
    with pytest.raises(ValueError, match=r"3x3 window after it, which pads with zeros"):
        algebra.fold_into_next(affine, w)
    x = draw(rng, 1, 5, 5, 4)
    padded = conv(scaled(x, affine), w, padding=1)
    merged = conv(x, algebra.fold_into_next(affine, w, zero_padding=False), padding=1)
    assert np.abs(padded - merged)[:, 0].max() > 0.1  # the refusal has a reason
    close(merged[:, 1:-1, 1:-1], padded[:, 1:-1, 1:-1])


def test_fold_into_next_through_average_pooling():
    rng = np.random.default_rng(1)
    dense = Linear(draw(rng, 5, 3), draw(rng, 3))
    affine = Affine(draw(rng, 5), draw(rng, 5))
    x = draw(rng, 2, 4, 3, 5)
    merged = algebra.fold_into_next(affine, dense)
    expected = scaled(x, affine).mean((1, 2)) @ dense.kernel + dense.bias[None]
    close(x.mean((1, 2)) @ merged.kernel + merged.bias[None], expected)


@given(channels=CHANNELS, bias=st.booleans(), seed=SEEDS)
def test_pad_and_add(channels, bias, seed):
    rng = np.random.default_rng(seed)
    inner, outer, groups = channels
    counts = (inner * groups, outer * groups, groups, bias)
    sizes = [(5, 5), (1, 1), (3, 3), (1, 5), (5, 1)]
    branches = [linear(rng, size, *counts) for size in sizes]
    x = draw(rng, 2, 7, 6, inner * groups)
    expected = 0
    for (rows, columns), branch in zip(sizes, branches, strict=True):
        margins = [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)]
        expected += conv(np.pad(x, margins), branch)
    merged = algebra.add(*(algebra.pad_kernel(branch, (5, 5)) for branch in branches))
    close(conv(x, merged, padding=2), expected)
    # Windows of stride 2 have the same middles for odd kernels, and so merge as well.
    strided = conv(x, branches[0], padding=2, stride=2) + conv(x, branches[1], stride=2)
    both = algebra.add(branches[0], algebra.pad_kernel(branches[1], (5, 5)))
    close(conv(x, both, padding=2, stride=2), strided)


@given(channels=CHANNELS, size=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 4), seed=SEEDS)
def test_embed_dilated(channels, size, dilation, seed):
    rng = np.random.default_rng(seed)
    inner, outer, groups = channels
    w = linear(rng, (size, size), inner * groups, outer * groups, groups)
    x = draw(rng, 1, 9, 8, inner * groups)
    margin = dilation * (size // 2)
    expected = conv(x, w, padding=margin, dilation=dilation)
    close(conv(x, algebra.embed_dilated(w, dilation), padding=margin), expected)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (3, 3, 6, 6), (5, 3, 2, 6), (7, 7, 1, 5)])
def test_identity_kernel(shape):
    rng = np.random.default_rng(2)
    x = draw(rng, 2, 9, 9, shape[-1])
    same = Linear(algebra.identity_kernel(jnp.zeros(shape)))
    margins = [(0, 0), (shape[0] // 2,) * 2, (shape[1] // 2,) * 2, (0, 0)]
    close(conv(np.pad(x, margins), same), x)


@given(
    inner=st.integers(1, 3), middle=st.integers(1, 3), outer=st.integers(1, 3),
    groups=st.integers(1, 3), size=st.sampled_from([1, 3]), biases=st.integers(0, 3), seed=SEEDS,
)  # fmt: skip
def test_compose(inner, middle, outer, groups, size, biases, seed):
    rng = np.random.default_rng(seed)
    first = linear(rng, (1, 1), inner * groups, middle * groups, groups, bool(biases & 1))
    second = linear(rng, (size, size), middle * groups, outer * groups, groups, bool(biases & 2))
    x = draw(rng, 2, 6, 5, inner * groups)
    composed = algebra.compose(first, second, zero_padding=False)
    close(conv(x, composed), conv(conv(x, first), second))
    # With padding, where the map between the two is padded with what the first makes of zero.
    between = conv(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), first)
    close(conv(x, composed, padding=1), conv(between, second))


def test_pool_average():
    rng = np.random.default_rng(3)
    w = linear(rng, (1, 1), 4, 6, groups=2)
    x = draw(rng, 1, 7, 7, 4)
    windows = np.lib.stride_tricks.sliding_window_view(conv(x, w), (3, 3), (1, 2))
    close(conv(x, algebra.pool_average(w, (3, 3), zero_padding=False)), windows.mean((-1, -2)))


def test_affine_of_norm():
    rng = np.random.default_rng(4)
    scale, bias, mean, var = np.asarray(draw(rng, 4, 5))
    var, x = np.abs(var), np.asarray(draw(rng, 3, 5))
    affine = algebra.affine_of_norm(scale, bias, mean, var)
    close(scaled(x, affine), (x - mean) / np.sqrt(var + 1e-5) * scale + bias)


POINTWISE = Linear(np.ones((1, 1, 4, 4)), np.ones(4))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda w: algebra.fold_into_previous(w, Affine(jnp.ones(3), jnp.ones(3))), "4 channels"),
        (
            lambda w: algebra.fold_into_next(Affine(jnp.ones(5), jnp.ones(5)), POINTWISE),
            "5 input channels",
        ),
        (lambda w: algebra.add(w, Linear(jnp.ones((1, 1, 4, 4)))), "cannot be added"),
        (lambda w: algebra.pad_kernel(w, (4, 4)), "3x3 kernel cannot be centred in one of 4x4"),
        (lambda w: algebra.pad_kernel(w, (1, 1)), "cannot be centred"),
        (lambda w: algebra.identity_kernel(jnp.ones((3, 3, 4, 6))), "is the identity"),
        (lambda w: algebra.identity_kernel(jnp.ones((2, 2, 4, 4))), "is the identity"),
        (lambda w: algebra.compose(w, w), "do not compose"),
        (lambda w: algebra.compose(Linear(jnp.ones((1, 1, 2, 3))), w), "do not compose"),
        (lambda w: algebra.pool_average(w, (3, 3)), "only a 1x1"),
        (lambda w: algebra.pool_average(POINTWISE, (3, 3)), "3x3 window"),
        (lambda w: algebra.compose(POINTWISE, w), "3x3 window"),
    ],
)
def test_what_does_not_fit_is_refused(step, message):
    with pytest.raises(ValueError, match=message):
        step(Linear(jnp.ones((3, 3, 4, 4)), jnp.ones(4)))
