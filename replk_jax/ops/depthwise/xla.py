"""XLA's own depthwise convolution: the reference implementation."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from replk_jax.ops.depthwise.convolution import Convolution, Pair
from replk_jax.ops.depthwise.implementation import Estimate, Properties

NAME = "xla"
# XLA computes a wrong kernel gradient if the batch is sharded over one of two axes of a mesh
# (observed on CPUs with JAX 0.10.2 to 0.12.0).
PROPERTIES = Properties(partitioned_by_xla=False, supports_symbolic_sizes=True)


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """None: it supports every convolution."""
    return None


def estimate(convolution: Convolution) -> Estimate:
    """The fallback; the fastest for small kernels."""
    return Estimate(0, "limited by memory")


def forward(x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """A grouped convolution with one group per channel."""
    return convolve_symbolic_size(
        x,
        kernel,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        precision=convolution.precision,
    )


def convolve_symbolic_size(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: Pair,
    padding: str | Sequence[Pair],
    dilation: Pair,
    precision: lax.Precision | None,
) -> jax.Array:
    """`forward` for a height and width that may be symbolic.

    Args:
      x, kernel: (N, H, W, C) and (KH, KW, 1, C).
      stride, padding, dilation, precision: as in `jax.lax.conv_general_dilated`.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def input_gradient(g: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
    """g, dilated by the stride, convolved with the flipped kernel."""
    padding = [
        (kernel_extent - before, size - g_extent + before)
        for size, kernel_extent, g_extent, before in _extents(convolution, g)
    ]
    return lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=convolution.stride,
        rhs_dilation=convolution.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=g.shape[-1],
        precision=convolution.precision,
    )


def kernel_gradient(x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
    """x convolved with g; the batch takes the place of the input features and is summed over."""
    padding = [
        (before, kernel_extent + g_extent - size - before)
        for size, kernel_extent, g_extent, before in _extents(convolution, g)
    ]
    dk = lax.conv_general_dilated(
        x,
        g,
        window_strides=convolution.dilation,
        padding=padding,
        rhs_dilation=convolution.stride,
        dimension_numbers=("CHWN", "IHWO", "NHWC"),
        batch_group_count=g.shape[-1],
        precision=convolution.precision,
    )
    return dk.reshape(*convolution.kernel_size, 1, -1)


def _extents(convolution: Convolution, g: jax.Array) -> list[tuple[int, int, int, int]]:
    """(H, (KH - 1) * dilation, (OH - 1) * stride + 1, padding before), and so for the columns."""
    return [
        (
            convolution.size[axis],
            (convolution.kernel_size[axis] - 1) * convolution.dilation[axis],
            (g.shape[1 + axis] - 1) * convolution.stride[axis] + 1,
            convolution.padding[axis][0],
        )
        for axis in (0, 1)
    ]
