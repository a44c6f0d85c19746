"""Layers that train as several convolutions and merge into one, for any network.

Each replaces a K x K convolution with padding K // 2. `replk_jax.reparam.algebra` merges them.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    ReparameterizableModule,
    convolution,
    pytorch_init,
)
from replk_jax.ops import DepthwiseConv2D
from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.reparam.algebra import affine_of_norm, dirac_kernel, identity_kernel


class ConvBlock(ReparameterizableModule, kw_only=True):
    """The base of blocks that replace a whole K x K convolution.

    Attributes:
      features: output channels.
      kernel_size: odd K.
      stride: of both axes.
      groups: number of channel groups.
      dilation: of both axes.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @nn.nowrap
    def branch_kwargs(self) -> dict[str, Any]:
        """The fields that all branches share."""
        names = ("features", "stride", "groups", "dilation")
        return {name: getattr(self, name) for name in names} | super().common_kwargs()

    def merged(self, x: jax.Array) -> jax.Array:
        """The merged structure: a convolution with bias."""
        fields: dict[str, Any] = dict(
            strides=self.stride, groups=self.groups, dilation=self.dilation
        )
        return convolution(self, x, self.features, self.kernel_size, **fields, name="conv")

    @nn.nowrap
    def check(self, x: jax.Array) -> None:
        """Raises ValueError for an even kernel, or groups that do not divide the channels."""
        if self.kernel_size % 2 == 0:
            raise ValueError(
                "kernel_size must be odd, or the feature map would shift or shrink; "
                f"got {self.kernel_size}."
            )
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"groups must divide the channels; got groups={self.groups}, {x.shape[-1]} input "
                f"channels and features={self.features}."
            )


class AsymmetricConvBlock(ConvBlock, kw_only=True):
    """The sum of K x K, K x 1 and 1 x K convolutions, each with its batch norm.

    Ding et al., "ACNet" (arXiv:1908.03930). Merged, one K x K convolution with bias, `conv`.

    Attributes: see `ConvBlock`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O).

        Raises:
          ValueError: an even kernel, or groups that do not divide the channels.
        """
        self.check(x)
        if self.deploy:
            return self.merged(x)
        branch = partial(ConvNorm, **self.branch_kwargs())
        k = self.kernel_size
        return (
            branch(kernel_size=(k, k), name="square")(x, train)
            + branch(kernel_size=(k, 1), name="vertical")(x, train)
            + branch(kernel_size=(1, k), name="horizontal")(x, train)
        )


class DiverseBranchBlock(ConvBlock, kw_only=True):
    """The sum of four branches: K x K, 1 x 1, 1 x 1 then K x K, and 1 x 1 then average pool.

    Ding et al., "Diverse Branch Block" (arXiv:2103.13425). Merged, one K x K convolution with
    bias, `conv`. A depthwise block has the same branches, unlike in the official code.

    Attributes: see `ConvBlock`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O).

        Raises:
          ValueError: an even kernel, or groups that do not divide the channels.
        """
        self.check(x)
        if self.deploy:
            return self.merged(x)
        k, fields = self.kernel_size, self.branch_kwargs()
        return (
            ConvNorm(**fields, kernel_size=k, name="dbb_origin")(x, train)
            + ConvNorm(**fields, name="dbb_1x1")(x, train)
            + PointwiseThenConv(**fields, kernel_size=k, name="dbb_1x1_kxk")(x, train)
            + PointwiseThenAverage(**fields, kernel_size=k, name="dbb_avg")(x, train)
        )


class PointwiseThenConv(ReparameterizableModule, kw_only=True):
    """1 x 1 convolution I + W, batch norm, K x K convolution, batch norm.

    Attributes: see `ConvBlock`.
    """

    features: int
    kernel_size: int
    stride: int
    groups: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O)."""
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = ResidualKernelConv(groups=self.groups, **dtypes, name="idconv1")(x)
        norm = BatchNorm(**self.common_kwargs(), name="bn1")
        x = norm_and_pad(norm, x, self.dilation * (self.kernel_size // 2), train)
        x = convolution(
            self,
            x,
            self.features,
            self.kernel_size,
            strides=self.stride,
            groups=self.groups,
            dilation=self.dilation,
            padding=0,
            use_bias=False,
            name="conv2",
        )
        return BatchNorm(**self.common_kwargs(), name="bn2")(x, train)


class PointwiseThenAverage(ReparameterizableModule, kw_only=True):
    """1 x 1 convolution, batch norm, average of K x K pixels, batch norm.

    Attributes: see `ConvBlock`.
    """

    features: int
    kernel_size: int
    stride: int
    groups: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O)."""
        x = convolution(self, x, self.features, 1, groups=self.groups, use_bias=False, name="conv")
        norm = BatchNorm(**self.common_kwargs(), name="bn")
        x = norm_and_pad(norm, x, self.dilation * (self.kernel_size // 2), train)
        x = _average_pool(x, self.kernel_size, self.stride, self.dilation)
        return BatchNorm(**self.common_kwargs(), name="avgbn")(x, train)


def _average_pool(x: jax.Array, size: int, stride: int, dilation: int) -> jax.Array:
    """The mean over windows of size x size pixels, `dilation` apart; without padding.

    Accumulated in at least float32.
    """
    wide = _wide(x)
    dimensions, strides, dilations = ((1, n, n, 1) for n in (size, stride, dilation))
    sums = jax.lax.reduce_window(
        wide, np.zeros((), wide.dtype), jax.lax.add, dimensions, strides, "VALID", None, dilations
    )
    return (sums / size**2).astype(x.dtype)


def norm_and_pad(norm: BatchNorm, x: jax.Array, margin: int, train: bool) -> jax.Array:
    """Batch norm, then a border with the value that it maps zero to.

    The result equals padding x with zeros before the norm, as the merged convolution does. In
    training too, the border comes from the running statistics and has no gradient, as in the
    official code.

    Maps (N, H, W, C) to (N, H + 2 margin, W + 2 margin, C).
    """
    y = norm(x, train)
    arrays = {**norm.variables["params"], **norm.variables["batch_stats"]}
    affine = affine_of_norm(**jax.tree.map(_wide, arrays))
    border = jax.lax.stop_gradient(affine.bias).astype(y.dtype).reshape(1, 1, 1, -1)
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    inside = jnp.pad(jnp.ones((1, *y.shape[1:3], 1), bool), around)
    return jnp.where(inside, jnp.pad(y, around), border)


class ReparamLargeKernelConv(ReparameterizableModule, kw_only=True):
    """A K x K depthwise convolution with parallel small ones (RepLKNet's guideline 3).

    Each has its own batch norm, and their outputs are added. Merged, one K x K depthwise
    convolution with bias, `lkb_reparam`.

    Attributes:
      kernel_size: odd K.
      small_kernel: size of a parallel kernel, at most K; None for none.
      dilated_branches: (size, dilation) of additional parallel kernels.
      stride, dilation: of both axes.
    """

    kernel_size: int
    small_kernel: int | None
    dilated_branches: tuple[tuple[int, int], ...] = ()
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, ceil(H / stride), ceil(W / stride), C).

        Raises:
          ValueError: an even kernel, or a small kernel that is larger.
        """
        if self.kernel_size % 2 == 0 or (self.small_kernel or 1) > self.kernel_size:
            raise ValueError(
                "kernel_size must be odd, and no less than small_kernel; got "
                f"{self.kernel_size} and {self.small_kernel}."
            )
        if self.deploy:
            return DepthwiseConv2D(
                kernel_size=(self.kernel_size, self.kernel_size),
                strides=self.stride,
                kernel_dilation=self.dilation,
                padding=self.dilation * (self.kernel_size // 2),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                kernel_init=pytorch_init(self.kernel_size**2),
                bias_init=pytorch_init(self.kernel_size**2),
                implementation=self.implementation,
                name="lkb_reparam",
            )(x)
        settings = dict(stride=self.stride, dilation=self.dilation, **self.common_kwargs())
        branch = partial(ConvNorm, features=x.shape[-1], depthwise=True, **settings)
        y = branch(kernel_size=self.kernel_size, name="lkb_origin")(x, train)
        if self.small_kernel is not None:
            y += branch(kernel_size=self.small_kernel, name="small_conv")(x, train)
        for k, d in self.dilated_branches:
            y += branch(kernel_size=k, dilation=d * self.dilation, name=f"dilated_{k}x{k}_{d}")(
                x, train
            )
        return y


class ResidualKernelConv(nn.Module):
    """A convolution with kernel I + W: the shortcut is in the kernel.

    Parameter `residual_kernel` W (K, K, C / groups, C).

    Attributes:
      kernel_size: odd K.
      groups: number of channel groups.
      dilation: of both axes.
      dtype: of the computation; the kernel is summed in at least float32.
      param_dtype: of the parameters.
      kernel_init: of W.
    """

    kernel_size: int = 1
    groups: int = 1
    dilation: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        shape = _kernel_shape(x, self.kernel_size, self.groups)
        w = _wide(self.param("residual_kernel", self.kernel_init, shape, self.param_dtype))
        kernel = identity_kernel(w) + w
        return _convolve(x, kernel, self.groups, self.dilation, self.dtype)


class DiracConv(nn.Module):
    """A convolution with kernel diag(a) I + diag(b) W / |W|, with |W| of each output channel.

    Zagoruyko and Komodakis, "DiracNets" (arXiv:1706.00388). Parameters `dirac_kernel` W
    (K, K, C / groups, C), `a` (C,), initially 1, and `b` (C,), initially 0.1.

    Attributes:
      kernel_size: odd K.
      groups: number of channel groups.
      dilation: of both axes.
      dtype: of the computation; the kernel is computed in at least float32.
      param_dtype: of the parameters.
    """

    kernel_size: int = 3
    groups: int = 1
    dilation: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        shape = _kernel_shape(x, self.kernel_size, self.groups)
        channels = shape[-1:]
        init = pytorch_init(shape[0] * shape[1] * shape[2])
        w = self.param("dirac_kernel", init, shape, self.param_dtype)
        a = self.param("a", nn.initializers.ones, channels, self.param_dtype)
        b = self.param("b", nn.initializers.constant(0.1), channels, self.param_dtype)
        kernel = dirac_kernel(*map(_wide, (w, a, b)))
        return _convolve(x, kernel, self.groups, self.dilation, self.dtype)


def _kernel_shape(x: jax.Array, size: int, groups: int) -> tuple[int, int, int, int]:
    channels = x.shape[-1]
    return size, size, channels // groups, channels


def _convolve(x: jax.Array, kernel: jax.Array, groups: int, dilation: int, dtype: Any) -> jax.Array:
    margins = [dilation * (size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=(1, 1),
        padding=[(margin, margin) for margin in margins],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(accumulation_dtype(x.dtype))
