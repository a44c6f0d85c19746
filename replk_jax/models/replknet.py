"""RepLKNet: "Scaling Up Your Kernels to 31x31" (Ding et al., CVPR 2022, arXiv:2203.06717).

The modules follow the paper's Figure 4 from the bottom up. They have the names of the official
PyTorch code (DingXiaoH/RepLKNet-pytorch): `stages.2.blocks.4.pw1.conv.weight` there is
`params/stages_2/blocks_4/pw1/conv/kernel` here.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from replk_jax.models.architecture import (
    LARGEST,
    Architecture,
    Count,
    OddOrNone,
    OddPerStage,
    PerStage,
    whole_numbers,
)
from replk_jax.models.backbone import Backbone, ModuleGroup
from replk_jax.models.family import ModelFamily
from replk_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    DropPath,
    ReparameterizableModule,
    rematerialized,
)
from replk_jax.models.network import Path, register_network
from replk_jax.models.reparam_convs import ReparamLargeKernelConv
from replk_jax.models.stored import FLAG, StoredField, stored_architecture
from replk_jax.ops.materialize import materialize


def _branches(field: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Pairs (odd kernel size, dilation), each once; raises ValueError for anything else."""
    try:
        pairs = tuple(map(tuple, value))
    except TypeError:
        pairs = ((0, 0),)
    branches = tuple(whole_numbers(field, pair) for pair in pairs)
    if any(len(pair) != 2 or pair[0] % 2 == 0 for pair in branches):
        raise ValueError(f"{field} must be pairs (odd kernel size, dilation); got {branches}.")
    if len(set(branches)) != len(branches):
        raise ValueError(f"{field} must differ from one another; got {branches}.")
    return branches


@dataclasses.dataclass(frozen=True)
class RepLKNetArchitecture(Architecture):
    """The hyper-parameters that distinguish one RepLKNet from another (paper, section 4.1).

    Attributes:
      kernel_sizes: K of the large depthwise kernels, one per stage, odd.
      layers: number of (RepLKBlock, ConvFFN) pairs, one per stage.
      channels: width C, one per stage.
      small_kernel: size of the parallel small kernel, odd, or None for no such branch.
      dw_ratio: width of the large depthwise convolution over C.
      ffn_ratio: hidden width of the ConvFFN over C.
      in_channels: channels of the images.
      dilated_branches: (k, dilation) of additional parallel small kernels (UniRepLKNet,
        arXiv:2311.15599). Each must fit into the kernel of every stage.

    Raises:
      ValueError: an architecture that cannot exist.
    """

    stem_stride: ClassVar[int] = 4  # of its two convolutions with a stride

    kernel_sizes: OddPerStage
    layers: PerStage
    channels: PerStage
    small_kernel: OddOrNone = 5
    dw_ratio: float = 1.0
    ffn_ratio: float = 4.0
    in_channels: Count = 3
    dilated_branches: Annotated[tuple[tuple[int, int], ...], _branches] = ()

    def check(self) -> None:
        """See `Architecture`."""
        if self.small_kernel is not None and self.small_kernel > min(self.kernel_sizes):
            raise ValueError(
                f"small_kernel={self.small_kernel} must not be larger than the smallest of "
                f"kernel_sizes={self.kernel_sizes}; None builds no small kernel."
            )
        smallest = min(self.kernel_sizes)
        too_large = [(k, d) for k, d in self.dilated_branches if (k - 1) * d + 1 > smallest]
        if too_large:
            raise ValueError(
                f"dilated_branches {too_large} span (k - 1) dilation + 1 pixels, which must not be "
                f"more than the smallest of kernel_sizes={self.kernel_sizes}."
            )
        widths = [ratio * c for ratio in (self.dw_ratio, self.ffn_ratio) for c in self.channels]
        if not all(1 <= width <= LARGEST for width in widths):
            raise ValueError(
                f"Every convolution needs a channel, and at most {LARGEST:,}; got "
                f"channels={self.channels}, dw_ratio={self.dw_ratio}, ffn_ratio={self.ffn_ratio}."
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return self.channels

    def drop_path_rates(self, rate: float) -> list[tuple[float, ...]]:
        """One rate per (RepLKBlock, ConvFFN) pair, a tuple per stage, from 0 up to `rate`."""
        rates = np.linspace(0.0, rate, sum(self.layers))
        return [tuple(stage.tolist()) for stage in np.split(rates, np.cumsum(self.layers)[:-1])]


class RepLKBlock(ReparameterizableModule, kw_only=True):
    """x + DropPath(pw2(ReLU(LK(ReLU(pw1(BN(x))))))): the large-kernel half of a pair."""

    kernel_size: int
    small_kernel: int | None
    dilated_branches: tuple[tuple[int, int], ...]
    dw_ratio: float
    dilation: int
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        channels = x.shape[-1]
        pointwise = partial(ConvNorm, **self.common_kwargs())
        y = x
        if not self.deploy:  # merging folds this batch norm into pw1
            y = BatchNorm(**self.common_kwargs(), name="prelkb_bn")(y, train)
        y = nn.relu(pointwise(features=int(channels * self.dw_ratio), name="pw1")(y, train))
        y = ReparamLargeKernelConv(
            kernel_size=self.kernel_size,
            small_kernel=self.small_kernel,
            dilated_branches=self.dilated_branches,
            dilation=self.dilation,
            **self.common_kwargs(),
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
        pointwise = partial(ConvNorm, **self.common_kwargs())
        y = x
        if not self.deploy:  # merging folds this batch norm into pw1
            y = BatchNorm(**self.common_kwargs(), name="preffn_bn")(y, train)
        y = pointwise(features=int(channels * self.ffn_ratio), name="pw1")(y, train)
        y = nn.gelu(y, approximate=False)
        y = pointwise(features=channels, name="pw2")(y, train)
        return materialize(x + DropPath(self.drop_path_rate)(y, train))


class Stage(ReparameterizableModule, kw_only=True):
    """Pairs of RepLKBlock and ConvFFN at one resolution.

    With `norm_output`, a batch norm is applied to the stage output that the network returns, but
    not to the input of the next stage.
    """

    kernel_size: int
    small_kernel: int | None
    dilated_branches: tuple[tuple[int, int], ...]
    dw_ratio: float
    ffn_ratio: float
    dilation: int
    drop_path_rates: tuple[float, ...]
    norm_output: bool
    remat: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Runs the stage.

        Args:
          x: (N, H, W, C).
          train: as of `RepLKNet`.

        Returns:
          The input of the next stage and the stage output of the network, both with the shape of
          `x`.
        """
        large_kernel_block = rematerialized(RepLKBlock, self.remat)
        ffn_block = rematerialized(ConvFFN, self.remat)
        for pair, rate in enumerate(self.drop_path_rates):
            x = large_kernel_block(
                kernel_size=self.kernel_size,
                small_kernel=self.small_kernel,
                dilated_branches=self.dilated_branches,
                dw_ratio=self.dw_ratio,
                dilation=self.dilation,
                drop_path_rate=rate,
                **self.common_kwargs(),
                name=f"blocks_{2 * pair}",
            )(x, train)
            x = ffn_block(
                ffn_ratio=self.ffn_ratio,
                drop_path_rate=rate,
                **self.common_kwargs(),
                name=f"blocks_{2 * pair + 1}",
            )(x, train)
        if not self.norm_output:
            return x, x
        return x, BatchNorm(**self.common_kwargs(), name="norm")(x, train)


@register_network
class RepLKNet(Backbone, kw_only=True):
    """RepLKNet as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("replknet_31b")
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        logits = model.apply(variables, images)

    A backbone has no final norm.

    Attributes:
      drop_path_rate: stochastic depth of the last pair; the first has none, and between
        them the rate grows linearly.
      norm_intermediate_features: whether each stage of `out_indices`, or each stage without it,
        has a batch norm on its output (the paper's XL on COCO and ADE20K). Merged, such a norm is
        a scale and a bias.
      architecture, num_classes, out_indices, output_stride, contract_dilation, remat, deploy,
        dtype, param_dtype, implementation: see `Backbone`. An `output_stride` of 4 dilates all
        stages but the first.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Backbone.stored_fields,
        "architecture": stored_architecture(RepLKNetArchitecture),
        "norm_intermediate_features": FLAG,
    }
    norm_joins_head: ClassVar[bool] = True
    final_norm: ClassVar[Path] = ("norm",)
    output_strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    rates: ClassVar[tuple[str, ...]] = ("drop_path_rate",)

    architecture: RepLKNetArchitecture  # pyright: ignore[reportIncompatibleVariableOverride]  # modules are frozen
    drop_path_rate: float = 0.0
    norm_intermediate_features: bool = False

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        """See `Backbone`."""
        arch = self.architecture
        conv_norm = partial(ConvNorm, **self.common_kwargs())
        drop_path_rates = arch.drop_path_rates(self.drop_path_rate)
        normed = self.normed_stages()

        def conv_norm_relu(x, name, width, **settings):
            return nn.relu(conv_norm(features=width, **settings, name=name)(x, train))

        width = arch.channels[0]
        x = conv_norm_relu(x, "stem_0", width, kernel_size=3, stride=2)
        x = conv_norm_relu(x, "stem_1", width, kernel_size=3, depthwise=True)
        x = conv_norm_relu(x, "stem_2", width)
        x = conv_norm_relu(x, "stem_3", width, kernel_size=3, stride=2, depthwise=True)

        outputs = []
        for s, sampling in enumerate(self.stage_samplings()):
            if s > 0:
                width = arch.channels[s]
                x = conv_norm_relu(x, f"transitions_{s - 1}_0", width)
                x = conv_norm_relu(
                    x,
                    f"transitions_{s - 1}_1",
                    width,
                    kernel_size=3,
                    stride=sampling.stride,
                    dilation=sampling.entry_dilation,
                    depthwise=True,
                )
            x, output = Stage(
                kernel_size=arch.kernel_sizes[s],
                small_kernel=arch.small_kernel,
                dilated_branches=arch.dilated_branches,
                dw_ratio=arch.dw_ratio,
                ffn_ratio=arch.ffn_ratio,
                dilation=sampling.dilation,
                drop_path_rates=drop_path_rates[s],
                norm_output=s in normed,
                remat=self.remat,
                **self.common_kwargs(),
                name=f"stages_{s}",
            )(x, train)
            outputs.append(output)
        return outputs, x

    @nn.nowrap
    def final_feature_map(self, x: jax.Array, train: bool) -> jax.Array:
        """See `Backbone`. Merging folds the batch norm into the classifier, if there is one."""
        if self.deploy and self.num_classes is not None:
            return x
        return BatchNorm(**self.common_kwargs(), name="norm")(x, train)

    @property
    def stage_norms(self) -> tuple[Path, ...]:
        """See `Backbone`."""
        return tuple((f"stages_{s}", "norm") for s in range(len(self.architecture.layers)))

    @nn.nowrap
    def normed_stages(self) -> tuple[int, ...]:
        """The stages with a batch norm on their output."""
        if not self.norm_intermediate_features:
            return ()
        every_stage = tuple(range(len(self.architecture.layers)))
        return every_stage if self.out_indices is None else self.out_indices

    @nn.nowrap
    def module_groups(self) -> list[ModuleGroup]:
        """See `Backbone`. A transition is in the group of the stage before it."""
        stages = len(self.architecture.layers)
        groups = [ModuleGroup("stem", 0, tuple(f"stem_{i}" for i in range(4)))]
        for s in range(stages):
            groups.append(ModuleGroup(f"stages_{s}", 1 + s, (f"stages_{s}",)))
            if s + 1 < stages:
                modules = (f"transitions_{s}_0", f"transitions_{s}_1")
                groups.append(ModuleGroup(f"transitions_{s}", 1 + s, modules))
        return [*groups, ModuleGroup("head", 1 + stages, ("norm", self.head_name))]

    @property
    def num_layers(self) -> int:
        """14 for every architecture: see `layer_of`."""
        return 14

    @nn.nowrap
    def layer_of(self, path: Path) -> int:
        """The layers of the official code.

        - 0: the stem;
        - 1 and 2: stages 0 and 1, each with the transition after it;
        - 3 to 11: stage 2, four blocks per layer; 11 also has the transition after it;
        - 12: stage 3;
        - 13: the final norm and the classifier.

        The numbers fit depths (2, 2, 18, 2), and are the same for other depths.

        Raises:
          ValueError: the network has no such parameter, or has a fifth stage.
        """
        group = self.stage_of(path)
        if group == self.num_stage_groups - 1:
            return 13
        if group < 3:
            return group
        if group == 3:
            block = re.fullmatch(r"stages_2/blocks_(\d+)", "/".join(path[:2]))
            return min(11, 3 + int(block[1]) // 4) if block else 11
        if group == 4:
            return 12
        raise ValueError("A RepLKNet of more than four stages has no layers, only stages.")


_DEPTHS = (2, 2, 18, 2)
_BASE = (128, 256, 512, 1024)
_LARGE = (192, 384, 768, 1536)
_XLARGE = (256, 512, 1024, 2048)

FAMILY = ModelFamily(
    name="replknet",
    network=RepLKNet,
    architecture=RepLKNetArchitecture,
    # 31B, 31L and XL are the paper's section 4.1; the others its Table 5.
    architectures={
        "replknet_3": RepLKNetArchitecture((3, 3, 3, 3), _DEPTHS, _BASE, small_kernel=None),
        "replknet_7": RepLKNetArchitecture((7, 7, 7, 7), _DEPTHS, _BASE),
        "replknet_13": RepLKNetArchitecture((13, 13, 13, 13), _DEPTHS, _BASE),
        "replknet_25": RepLKNetArchitecture((25, 25, 25, 13), _DEPTHS, _BASE),
        "replknet_31b": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _BASE),
        "replknet_31l": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _LARGE),
        "replknet_xl": RepLKNetArchitecture(
            (27, 27, 27, 13), _DEPTHS, _XLARGE, small_kernel=None, dw_ratio=1.5
        ),
    },
)
