"""Operators: the depthwise convolution, and the Flax layer around it."""

from replk_jax.ops.depthwise import DepthwiseConv2D, depthwise_conv2d, explain

__all__ = ["DepthwiseConv2D", "depthwise_conv2d", "explain"]
