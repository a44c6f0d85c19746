"""Operators: how one depthwise convolution is computed, and the Flax layer around it."""

from replk_jax.ops.depthwise_conv2d import depthwise_conv2d, explain
from replk_jax.ops.layer import DepthwiseConv2D

__all__ = ["DepthwiseConv2D", "depthwise_conv2d", "explain"]
