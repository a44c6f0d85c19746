"""The depthwise separable convolution of DeepLabv3+."""

import flax.linen as nn
import jax

from replk_jax.models.layers import ConvNorm, ReparameterizableModule


class SeparableConv(ReparameterizableModule, kw_only=True):
    """A 3 x 3 depthwise and a 1 x 1 convolution, each with batch norm and ReLU.

    Attributes:
      features: output channels.
      dilation: of the depthwise convolution.
      kernel_init: initialiser of both kernels.
    """

    features: int
    dilation: int = 1
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, features)."""
        depthwise = ConvNorm(
            features=x.shape[-1],
            kernel_size=3,
            dilation=self.dilation,
            depthwise=True,
            kernel_init=self.kernel_init,
            **self.common_kwargs(),
            name="depthwise_conv",
        )
        pointwise = ConvNorm(
            features=self.features,
            kernel_init=self.kernel_init,
            **self.common_kwargs(),
            name="pointwise_conv",
        )
        return nn.relu(pointwise(nn.relu(depthwise(x, train)), train))
