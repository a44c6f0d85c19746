"""Layers that the model families share, with PyTorch's conventions.

Published checkpoints come from PyTorch. These layers therefore differ from Flax's defaults in
padding, initialisation and batch-norm statistics.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from replk_jax.ops import DepthwiseConv2D
from replk_jax.ops.broadcasting import add_bias
from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.reparam.algebra import BATCH_NORM_EPSILON

# The initialisation of mmsegmentation's and mmdetection's heads: normal, with the variance
# 2 / (output channels x kernel area), also of a depthwise convolution.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

GROUP_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # weight of the old statistic; PyTorch's default momentum is 1 - 0.9


class ReparameterizableModule(nn.Module):
    """A module with a training-time and a merged structure.

    Attributes:
      deploy: False builds the training-time structure, True the merged one.
      dtype: of the computation. Batch-norm statistics are kept in at least float32.
      param_dtype: of the parameters.
      implementation: of the depthwise convolutions, as in `depthwise_conv2d`.
    """

    deploy: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.nowrap
    def common_kwargs(self) -> dict[str, Any]:
        """The fields above, as keyword arguments of a submodule."""
        names = ("deploy", "dtype", "param_dtype", "implementation")
        return {name: getattr(self, name) for name in names}


class BatchNorm(ReparameterizableModule):
    """Batch norm over all axes but the last, as PyTorch computes it.

    It differs from `flax.linen.BatchNorm` in two ways. The running variance is the unbiased
    estimate (n / (n - 1)). The variance of a batch is computed in two passes: the one-pass formula
    loses all digits if a channel's mean is much larger than its standard deviation.

    Under `jax.jit` with a sharded batch the statistics are those of the global batch.

    In the merged structure, a batch norm that no convolution absorbs is an affine function of
    `scale` and `bias`, without statistics.

    Parameters `scale`, `bias` (C,); statistics `mean`, `var` (C,) in `batch_stats`.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        """Maps (N, ..., C) to (N, ..., C).

        Args:
          x: (N, ..., C).
          train: whether to use and to update the statistics of the batch.
          valid: bool (N,), False for padding, which the statistics of the batch leave out. None for
            a batch without padding.
        """
        channels = x.shape[-1]
        wide = accumulation_dtype(self.param_dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x.astype(accumulation_dtype(self.param_dtype, self.dtype))

        def per_channel(vector: jax.Array) -> jax.Array:
            """(C,) in the dtype of x, shaped to be broadcast to it."""
            return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (channels,))

        if self.deploy:
            return (x * per_channel(scale) + per_channel(bias)).astype(self.dtype)

        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), wide)
        if train:
            count = x.size // channels
            if count == 1:
                raise ValueError(
                    f"Batch norm cannot train on one value per channel (input {x.shape}): "
                    "use a larger batch or larger images."
                )
            mean = _mean(x, valid)
            var = _mean(jnp.square(x - per_channel(mean)), valid)
            if not self.is_initializing():
                unbiased = var * _unbiased(count, valid)
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    kept = BATCH_NORM_MOMENTUM * running.value
                    running.value = kept + (1 - BATCH_NORM_MOMENTUM) * new.astype(wide)
        else:
            mean, var = running_mean.value, running_var.value
        factor = per_channel(scale) * per_channel(jax.lax.rsqrt(var + BATCH_NORM_EPSILON))
        y = (x - per_channel(mean)) * factor + per_channel(bias)
        return y.astype(self.dtype)


def _mean(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """The mean (C,) of the valid rows of x, (N, ..., C); 0 if there are none."""
    axes = tuple(range(x.ndim - 1))
    if valid is None:
        return jnp.mean(x, axes)
    chosen = jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
    values = jnp.maximum(jnp.sum(valid), 1) * (x.size // (x.shape[0] * x.shape[-1]))
    return jnp.sum(chosen, axes) / values.astype(x.dtype)


def _unbiased(count: int, valid: jax.Array | None) -> float | jax.Array:
    """The unbiased over the biased variance of `count` values per channel, those of padding too."""
    if valid is None:
        return count / (count - 1)
    values = jnp.sum(valid).astype(jnp.float32) * (count // valid.size)
    return values / jnp.maximum(values - 1, 1)


class GroupNorm(ReparameterizableModule, kw_only=True):
    """Group norm of each image over its pixels and the channels of a group, as in PyTorch.

    Wu and He, "Group Normalization" (arXiv:1803.08494). The variance is the biased one, computed in
    two passes in at least float32. The merged structure is the same.

    Parameters `scale`, `bias` (C,).

    Attributes:
      num_groups: number of groups, which divides the number of channels.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"A group norm of {self.num_groups} groups needs a multiple of "
                f"{self.num_groups} channels; got {channels}."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        wide = accumulation_dtype(self.param_dtype, self.dtype)
        groups = x.astype(wide).reshape(*x.shape[:-1], self.num_groups, -1)
        axes = (1, 2, 4)  # all but the images and the groups
        centred = groups - jnp.mean(groups, axes, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + GROUP_NORM_EPSILON)).reshape(x.shape)
        scale, bias = (vector.astype(wide).reshape(1, 1, 1, -1) for vector in (scale, bias))
        return (y * scale + bias).astype(self.dtype)


class Conv2D(nn.Module):
    """A 2-D convolution with the parameters of `flax.linen.Conv`.

    Parameters: `kernel` (KH, KW, I / groups, O) and, with `use_bias`, `bias` (O,). Unlike
    `nn.Conv`, it accumulates the gradient of the bias in at least float32.

    Attributes:
      features: O.
      kernel_size: (KH, KW).
      strides, kernel_dilation: of both axes.
      padding: zeros on every side, or (before, after) for rows and for columns.
      groups: number of channel groups.
      use_bias: whether to add a learned bias.
      dtype: of the computation.
      param_dtype: of the parameters.
      kernel_init, bias_init: initialisers.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | Sequence[tuple[int, int]] = 0
    kernel_dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, H', W', O)."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = self._convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return add_bias(y, bias.astype(self.dtype))

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = self.padding
        if isinstance(padding, int):
            padding = [(padding, padding)] * 2
        unpadded = not any(map(any, padding))
        if (*self.kernel_size, self.strides, self.groups) == (1, 1, 1, 1) and unpadded:
            # The gradient of a dot product is a dot product. XLA's convolution for that gradient
            # takes three times as long on CPUs.
            return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.strides, self.strides),
            padding=padding,
            rhs_dilation=(self.kernel_dilation, self.kernel_dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


class ConvNorm(ReparameterizableModule, kw_only=True):
    """A convolution without bias followed by batch norm; merged, a convolution with bias.

    Parameters: `conv/kernel` (rows, columns, I / groups, O) and `bn`; merged,
    `conv/{kernel,bias}`. Padding is dilation (k // 2) on both sides of an axis at any stride;
    XLA's "SAME" differs at stride 2.

    Attributes:
      features: output channels.
      kernel_size: odd size of the kernel, or (rows, columns).
      stride: of both axes.
      dilation: of both axes.
      groups: number of channel groups.
      depthwise: whether every channel has its own kernel (features = input channels).
      kernel_init: initialiser of the kernel; the bias of the merged convolution then starts at 0.
        None is PyTorch's default for both.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    depthwise: bool = False
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O).

        Args:
          x: (N, H, W, I).
          train, valid: as of `BatchNorm`.
        """
        size = self.kernel_size
        rows, columns = (size, size) if isinstance(size, int) else size
        if rows % 2 == 0 or columns % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, or the feature map would shift; got {size}."
            )
        groups = x.shape[-1] if self.depthwise else self.groups
        fan_in = rows * columns * x.shape[-1] // groups
        settings: dict[str, Any] = dict(
            kernel_size=(rows, columns),
            strides=self.stride,
            kernel_dilation=self.dilation,
            padding=[(self.dilation * (k // 2),) * 2 for k in (rows, columns)],
            use_bias=self.deploy,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init or pytorch_init(fan_in),
            bias_init=nn.initializers.zeros if self.kernel_init else pytorch_init(fan_in),
            name="conv",
        )
        if self.depthwise:
            x = DepthwiseConv2D(**settings, implementation=self.implementation)(x)
            x = checkpoint_name(x, _DEPTHWISE)
        else:
            x = Conv2D(self.features, **settings, groups=groups)(x)
        return x if self.deploy else BatchNorm(**self.common_kwargs(), name="bn")(x, train, valid)


def convolution(
    parent: ReparameterizableModule,
    x: jax.Array,
    features: int,
    kernel_size: int,
    *,
    groups: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    **fields: Any,
) -> jax.Array:
    """A K x K convolution (N, H, W, I) to (N, H', W', O) with PyTorch's initialisation.

    Args:
      parent: the module that calls it, which gives the dtypes.
      x: (N, H, W, I).
      features: O.
      kernel_size: K.
      groups: number of channel groups.
      dilation: of both axes.
      padding: of every side; None for dilation (K // 2).
      **fields: other fields of `Conv2D`, and `name`.
    """
    fan_in = kernel_size**2 * x.shape[-1] // groups
    return Conv2D(
        features,
        (kernel_size, kernel_size),
        padding=dilation * (kernel_size // 2) if padding is None else padding,
        kernel_dilation=dilation,
        groups=groups,
        kernel_init=pytorch_init(fan_in),
        bias_init=pytorch_init(fan_in),
        dtype=parent.dtype,
        param_dtype=parent.param_dtype,
        **fields,
    )(x)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch, per image, with probability `rate`.

    Kept branches are scaled by 1 / (1 - rate). It draws from the `dropout` stream.
    Huang et al., "Deep Networks with Stochastic Depth" (arXiv:1603.09382).
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, ...) to (N, ...)."""
        every_axis_but_batch = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=every_axis_but_batch)(
            x, deterministic=not train
        )


class GlobalAveragePool(nn.Module):
    """The mean over height and width, accumulated in at least float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, C)."""
        return jnp.mean(x.astype(accumulation_dtype(x.dtype)), (1, 2))


_DEPTHWISE = "depthwise"

# What a block keeps for the backward pass, which recomputes the rest: "full" keeps nothing,
# "save_depthwise" the outputs of depthwise convolutions, the slowest to recompute.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_depthwise": jax.checkpoint_policies.save_only_these_names(_DEPTHWISE),
}


def rematerialized(block: type[nn.Module], remat: str | None) -> type[nn.Module]:
    """A class of blocks that keeps for the backward pass only what a policy allows.

    Args:
      block: the class, whose call takes `(x, train)`.
      remat: a name of `REMAT_POLICIES`; None keeps all activations.

    Raises:
      ValueError: another name.
    """
    if remat is None:
        return block
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat must be None or one of {[*REMAT_POLICIES]}; got {remat!r}.")
    return nn.remat(block, static_argnums=(2,), policy=REMAT_POLICIES[remat])


def pytorch_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default initialisation of convolutions and linear layers.

    It draws weights and biases from U(-b, b) with b = 1 / sqrt(fan_in): Kaiming-uniform with
    a = sqrt(5).
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
