"""The depthwise convolution as a Flax layer."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from replk_jax.ops.depthwise.api import depthwise_conv2d


class DepthwiseConv2D(nn.Module):
    """A depthwise convolution with the parameter names of `flax.linen.Conv`.

    Parameters: `kernel` (KH, KW, 1, C) and, with `use_bias`, `bias` (C,). A checkpoint of
    `nn.Conv(C, (KH, KW), feature_group_count=C)` loads into it unchanged.

    Attributes:
      kernel_size: (KH, KW), or one number for both.
      strides, padding, kernel_dilation, precision, implementation: as in `depthwise_conv2d`.
      use_bias: whether to add a learned bias.
      dtype: of the computation; None promotes input and parameters.
      param_dtype: of the parameters.
      kernel_init, bias_init: initialisers.
    """

    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME"
    kernel_dilation: int | tuple[int, int] = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    implementation: str | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to (..., H', W', C)."""
        channels = x.shape[-1]
        size = self.kernel_size
        kernel_shape = (*((size, size) if isinstance(size, int) else size), 1, channels)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        batch = x.shape[:-3]
        y = depthwise_conv2d(
            x.reshape(math.prod(batch), *x.shape[-3:]),
            kernel,
            bias,
            stride=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            precision=self.precision,
            implementation=self.implementation,
        )
        return y.reshape(*batch, *y.shape[1:])
