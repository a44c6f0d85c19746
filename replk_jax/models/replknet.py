"""RepLKNet: "Scaling Up Your Kernels to 31x31" (Ding et al., CVPR 2022, arXiv:2203.06717).

The modules follow the paper's Figure 4 from the bottom up, and carry the names of the
official PyTorch code (DingXiaoH/RepLKNet-pytorch), so that `stages.2.blocks.4.pw1.conv.weight`
there is `params/stages_2/blocks_4/pw1/conv/kernel` here.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    DropPath,
    GlobalAveragePool,
    ReparameterizableModule,
    pytorch_init,
)
from replk_jax.ops import DepthwiseConv2D
from replk_jax.ops.materialize import materialize


@dataclasses.dataclass(frozen=True)
class RepLKNetArchitecture:
    """The hyper-parameters that tell one RepLKNet from another (paper, section 4.1).

    Attributes:
      kernel_sizes: K of the large depthwise kernels, one per stage, odd.
      layers: number of (RepLKBlock, ConvFFN) pairs, one per stage.
      channels: width C, one per stage.
      small_kernel: size of the parallel small kernel, odd, or None for no such branch.
      dw_ratio: width of the large depthwise convolution over C.
      ffn_ratio: hidden width of the ConvFFN over C.
      in_channels: channels of the images.

    Raises:
      ValueError: an architecture that cannot exist.
    """

    kernel_sizes: tuple[int, ...]
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    small_kernel: int | None = 5
    dw_ratio: float = 1.0
    ffn_ratio: float = 4.0
    in_channels: int = 3

    def __post_init__(self):
        per_stage = {}
        for field in ("kernel_sizes", "layers", "channels"):
            per_stage[field] = _whole_numbers(field, getattr(self, field))
            object.__setattr__(self, field, per_stage[field])  # a list would not be hashable
        scalars = ("in_channels",) if self.small_kernel is None else ("small_kernel", "in_channels")
        for field in scalars:
            (value,) = _whole_numbers(field, (getattr(self, field),))
            object.__setattr__(self, field, value)
        if len({len(values) for values in per_stage.values()}) != 1 or not self.layers:
            raise ValueError(
                "kernel_sizes, layers and channels must have one entry per stage; got "
                + ", ".join(f"{field}={values}" for field, values in per_stage.items())
                + "."
            )
        even = [k for k in (*self.kernel_sizes, self.small_kernel or 1) if k % 2 == 0]
        if even:
            raise ValueError(
                f"Kernel sizes must be odd, or the map would shift or shrink; got {even}."
            )
        if self.small_kernel is not None:
            too_small = [k for k in self.kernel_sizes if k < self.small_kernel]
            if too_small:
                raise ValueError(
                    f"small_kernel={self.small_kernel} must not be larger than the smallest of "
                    f"kernel_sizes={self.kernel_sizes}; None builds no small kernel."
                )
        narrowest = [ratio * min(self.channels) for ratio in (self.dw_ratio, self.ffn_ratio)]
        if not all(1 <= width < math.inf for width in narrowest):
            raise ValueError(
                f"Every convolution needs a channel; got channels={self.channels}, "
                f"dw_ratio={self.dw_ratio}, ffn_ratio={self.ffn_ratio}."
            )

    def drop_path_rates(self, rate: float) -> list[tuple[float, ...]]:
        """One rate per (RepLKBlock, ConvFFN) pair, a tuple per stage, from 0 up to `rate`."""
        rates = np.linspace(0.0, rate, sum(self.layers))
        return [tuple(stage.tolist()) for stage in np.split(rates, np.cumsum(self.layers)[:-1])]


def _whole_numbers(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as Python's own integers, so that architectures compare and print alike."""
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise ValueError(f"{field} must be positive whole numbers; got {values}.")
    return numbers


class ReparamLargeKernelConv(ReparameterizableModule, kw_only=True):
    """A K x K depthwise convolution with a parallel small one (paper, guideline 3).

    Each has its own batch norm and the results are added. Merged, one K x K depthwise
    convolution with bias, `lkb_reparam`.
    """

    kernel_size: int
    small_kernel: int | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        if self.deploy:
            return DepthwiseConv2D(
                kernel_size=(self.kernel_size, self.kernel_size),
                padding=self.kernel_size // 2,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                kernel_init=pytorch_init(self.kernel_size**2),
                bias_init=pytorch_init(self.kernel_size**2),
                implementation=self.implementation,
                name="lkb_reparam",
            )(x)
        branch = partial(ConvNorm, features=x.shape[-1], depthwise=True, **self.structure())
        y = branch(kernel_size=self.kernel_size, name="lkb_origin")(x, train)
        if self.small_kernel is not None:
            y += branch(kernel_size=self.small_kernel, name="small_conv")(x, train)
        return y


class RepLKBlock(ReparameterizableModule, kw_only=True):
    """x + DropPath(pw2(ReLU(LK(ReLU(pw1(BN(x))))))): the large-kernel half of a pair."""

    kernel_size: int
    small_kernel: int | None
    dw_ratio: float
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        channels = x.shape[-1]
        pointwise = partial(ConvNorm, **self.structure())
        y = x
        if not self.deploy:  # merged, this batch norm is part of pw1
            y = BatchNorm(**self.structure(), name="prelkb_bn")(y, train)
        y = nn.relu(pointwise(features=int(channels * self.dw_ratio), name="pw1")(y, train))
        y = ReparamLargeKernelConv(
            kernel_size=self.kernel_size,
            small_kernel=self.small_kernel,
            **self.structure(),
            name="large_kernel",
        )(y, train)
        y = pointwise(features=channels, name="pw2")(nn.relu(y), train)
        return materialize(x + DropPath(self.drop_path_rate)(y, train))


class ConvFFN(ReparameterizableModule, kw_only=True):
    """x + DropPath(pw2(GELU(pw1(BN(x))))): the feed-forward half of a pair."""

    ffn_ratio: float
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        channels = x.shape[-1]
        pointwise = partial(ConvNorm, **self.structure())
        y = x
        if not self.deploy:  # merged, this batch norm is part of pw1
            y = BatchNorm(**self.structure(), name="preffn_bn")(y, train)
        y = pointwise(features=int(channels * self.ffn_ratio), name="pw1")(y, train)
        y = nn.gelu(y, approximate=False)
        y = pointwise(features=channels, name="pw2")(y, train)
        return materialize(x + DropPath(self.drop_path_rate)(y, train))


class Stage(ReparameterizableModule, kw_only=True):
    """Pairs of RepLKBlock and ConvFFN at one resolution.

    With `norm_intermediate_features` the map that leaves the network has a batch norm of
    its own; the map that goes on to the next stage does not pass it.
    """

    kernel_size: int
    small_kernel: int | None
    dw_ratio: float
    ffn_ratio: float
    drop_path_rates: tuple[float, ...]
    norm_intermediate_features: bool
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Maps (N, H, W, C) to the map for the next stage and the map to emit, both so."""
        large_kernel_block, ffn_block = RepLKBlock, ConvFFN
        if self.remat:
            large_kernel_block, ffn_block = (
                nn.remat(block, static_argnums=(2,)) for block in (RepLKBlock, ConvFFN)
            )
        for pair, rate in enumerate(self.drop_path_rates):
            x = large_kernel_block(
                kernel_size=self.kernel_size,
                small_kernel=self.small_kernel,
                dw_ratio=self.dw_ratio,
                drop_path_rate=rate,
                **self.structure(),
                name=f"blocks_{2 * pair}",
            )(x, train)
            x = ffn_block(
                ffn_ratio=self.ffn_ratio,
                drop_path_rate=rate,
                **self.structure(),
                name=f"blocks_{2 * pair + 1}",
            )(x, train)
        if not self.norm_intermediate_features:
            return x, x
        return x, BatchNorm(**self.structure(), name="norm")(x, train)


class RepLKNet(ReparameterizableModule, kw_only=True):
    """RepLKNet as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("replknet_31b")
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        logits = model.apply(variables, images)

    Attributes:
      architecture: widths, depths and kernels.
      num_classes: outputs of the classifier; None builds no classifier, and the model
        returns what would enter it.
      drop_path_rate: stochastic depth of the last pair; the first has none, and between
        them the rate grows linearly.
      out_indices: stages whose maps to return, in this order. The model is then a backbone,
        without final norm and classifier whatever `num_classes` says.
      norm_intermediate_features: a backbone's maps get a batch norm each (the paper's XL
        on COCO and ADE20K). Merged, they remain as scale and bias.
      remat: recompute each block's activations in the backward pass.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    architecture: RepLKNetArchitecture
    num_classes: int | None = 1000
    drop_path_rate: float = 0.0
    out_indices: tuple[int, ...] | None = None
    norm_intermediate_features: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, *, features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Runs the network.

        Args:
          x: normalised images, (N, H, W, in_channels), floating point; any H and W.
          train: batch norm uses the batch and updates `batch_stats` (which must be
            mutable), and stochastic depth draws from the `dropout` stream.
          features: return what would enter the classifier.

        Returns:
          Logits (N, num_classes), or features (N, C of the last stage): both in at least
          float32. Or, with `out_indices`, one map (N, H / 4 / 2^s, W / 4 / 2^s, C) for each
          stage s named, in `dtype`; odd sizes round up.

        Raises:
          ValueError: images of another shape, features of a merged classifier, or fields of
            the module that make no sense.
          TypeError: images that are not floating point.
        """
        arch = self.architecture
        self._check(x, features)
        conv_norm = partial(ConvNorm, **self.structure())
        drop_path_rates = arch.drop_path_rates(self.drop_path_rate)
        last_stage = len(arch.layers) - 1

        def conv_norm_relu(maps, name, width, **settings):
            return nn.relu(conv_norm(features=width, **settings, name=name)(maps, train))

        width = arch.channels[0]
        x = conv_norm_relu(x, "stem_0", width, kernel_size=3, stride=2)
        x = conv_norm_relu(x, "stem_1", width, kernel_size=3, depthwise=True)
        x = conv_norm_relu(x, "stem_2", width)
        x = conv_norm_relu(x, "stem_3", width, kernel_size=3, stride=2, depthwise=True)

        outputs = []
        for s, kernel_size in enumerate(arch.kernel_sizes):
            x, emitted = Stage(
                kernel_size=kernel_size,
                small_kernel=arch.small_kernel,
                dw_ratio=arch.dw_ratio,
                ffn_ratio=arch.ffn_ratio,
                drop_path_rates=drop_path_rates[s],
                norm_intermediate_features=self.norm_intermediate_features,
                remat=self.remat,
                **self.structure(),
                name=f"stages_{s}",
            )(x, train)
            outputs.append(emitted)
            if s < last_stage:
                width = arch.channels[s + 1]
                x = conv_norm_relu(x, f"transitions_{s}_0", width)
                x = conv_norm_relu(
                    x, f"transitions_{s}_1", width, kernel_size=3, stride=2, depthwise=True
                )
        if self.out_indices is not None:
            return tuple(outputs[s] for s in self.out_indices)

        has_head = self.num_classes is not None
        if not (self.deploy and has_head):  # merged, this batch norm is part of the head
            x = BatchNorm(**self.structure(), name="norm")(x, train)
        x = GlobalAveragePool()(x)
        if features or not has_head:
            return x
        fan_in = x.shape[-1]
        return nn.Dense(
            self.num_classes,
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            kernel_init=pytorch_init(fan_in),
            bias_init=pytorch_init(fan_in),
            name="head",
        )(x)

    def _check(self, x, features):
        arch = self.architecture
        if x.ndim != 4 or x.shape[-1] != arch.in_channels:
            raise ValueError(
                f"RepLKNet takes images of shape (N, H, W, {arch.in_channels}); got {x.shape}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"RepLKNet takes normalised floating-point images; got {x.dtype}. "
                "Convert them, and apply the mean and standard deviation of the checkpoint."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1); got {self.drop_path_rate}.")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, or None; got {self.num_classes}.")
        stages = range(len(arch.layers))
        unknown = [s for s in self.out_indices or () if s not in stages]
        if unknown:
            raise ValueError(
                f"out_indices names stages {unknown}; this architecture has {list(stages)}."
            )
        if features and self.out_indices is not None:
            raise ValueError("A backbone (out_indices) returns its maps; it has no features.")
        if features and self.deploy and self.num_classes is not None:
            raise ValueError(
                "The merged classifier holds the final batch norm, so its features are gone. "
                "Build the model with num_classes=None and re-parameterize the variables "
                "without params/head: that keeps the norm as scale and bias."
            )
