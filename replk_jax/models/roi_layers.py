"""Layers of heads that see regions of interest. Gradients of biases are accumulated in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.ops.broadcasting import add_bias


class Linear(nn.Dense):
    """A linear layer with the parameters of `flax.linen.Dense`: `kernel` (I, O), `bias` (O,)."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps (..., I) to (..., O) in `dtype`."""
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        y = jnp.matmul(inputs.astype(self.dtype), kernel.astype(self.dtype))
        return add_bias(y, bias.astype(self.dtype))


class Upsampling2D(nn.Module):
    """A transposed 2 x 2 convolution of stride 2: every pixel becomes four.

    Parameters `kernel` (2, 2, O, I), `bias` (O,): the layout of PyTorch's ConvTranspose2d with the
    axes in reverse, as for every convolution.

    Attributes:
      features: O.
      dtype: of the computation.
      param_dtype: of the parameters.
      kernel_init: initialiser; the bias starts at 0.
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, 2 H, 2 W, O)."""
        count, height, width, channels = x.shape
        shape = (2, 2, self.features, channels)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        y = jnp.einsum("nhwi,aboi->nhawbo", x.astype(self.dtype), kernel.astype(self.dtype))
        y = y.reshape(count, 2 * height, 2 * width, self.features)
        return add_bias(y, bias.astype(self.dtype))


class ClassConv2D(nn.Module):
    """A 1 x 1 convolution with an output per class, of which each example may need only one.

    Parameters `kernel` (1, 1, I, K), `bias` (K,).

    Attributes:
      num_classes: K.
      dtype: of the computation.
      param_dtype: of the parameters.
      kernel_init: initialiser; the bias starts at 0.
    """

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array | None = None) -> jax.Array:
        """Maps (N, H, W, I) to the outputs of all classes, or of one for each example.

        Args:
          x: (N, H, W, I).
          classes: int (N,), from 0 to K - 1; None for all.

        Returns:
          (N, H, W, K), or (N, H, W) with `classes`. The other outputs are not computed.
        """
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel[0, 0], bias))
        if classes is None:
            return add_bias(jnp.matmul(x, kernel), bias)
        y = jnp.einsum("nhwi,in->nhw", x, kernel[:, classes])
        return y + bias[classes][:, None, None]
