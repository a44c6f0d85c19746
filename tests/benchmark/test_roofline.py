"""Operations and bytes, counted the slow way."""

import numpy as np
import pytest

from replk_jax.benchmark.roofline import least_bytes, roofline_seconds, useful_flops
from replk_jax.ops.depthwise.shapes import REPLKNET_224, UNUSUAL, Shape


@pytest.mark.parametrize("shape", UNUSUAL, ids=lambda shape: shape.name)
def test_useful_flops(shape):
    """The convolution of ones with ones counts the products that are not with padding."""
    convolution = shape.convolution
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel_size, convolution.stride, convolution.dilation
    ones = np.pad(np.ones(shape.size), np.maximum(convolution.padding, 0))
    oh, ow = convolution.output_size
    products = sum(
        ones[dh * u :: sh, dw * v :: sw][:oh, :ow].sum() for u in range(kh) for v in range(kw)
    )
    assert useful_flops(shape, 3, backward=False) == 2 * products * shape.channels * 3
    assert useful_flops(shape, 3, backward=True) == 6 * products * shape.channels * 3


def test_least_bytes():
    shape = Shape("8/3 stride 2", (8, 8), (3, 3), 5, stride=2)
    assert least_bytes(shape, 2, "bfloat16", backward=False) == 2 * 2 * 5 * (64 + 16)
    assert least_bytes(shape, 2, "float32", backward=True) == 4 * 2 * 5 * (3 * 64 + 2 * 16)


def test_roofline():
    large, small = REPLKNET_224[0], REPLKNET_224[3]
    device = "NVIDIA H200"
    assert roofline_seconds(large, 64, "bfloat16", False, device) == pytest.approx(46.4e-6, 1e-3)
    assert roofline_seconds(large, 64, "bfloat16", False, device, "float32") == pytest.approx(
        547e-6, 1e-3
    )
    bandwidth_bound = 2 * 2 * 64 * 49 * 1024 / 4.3e12
    assert roofline_seconds(small, 64, "bfloat16", False, device) == pytest.approx(bandwidth_bound)
    assert roofline_seconds(large, 64, "bfloat16", False, "abacus") is None
