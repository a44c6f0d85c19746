"""MobileNet V2 (Sandler et al., CVPR 2018, arXiv:1801.04381), with kernels of any size.

RepLKNet's paper (arXiv:2203.06717) uses it to show that large kernels need shortcuts (Table 2) and
a parallel small kernel (Table 3). With 3 x 3 kernels it is torchvision's `mobilenet_v2`. The
modules have the names of mmpretrain's backbone: `layer3.0.conv.1.bn.weight` there is
`params/layer3_0/conv_1/bn/scale` here.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from replk_jax.models.architecture import (
    Architecture,
    Count,
    Flag,
    OddOrNone,
    OddPerStage,
    PerStage,
)
from replk_jax.models.backbone import Backbone, ModuleGroup, stage_groups
from replk_jax.models.family import ModelFamily
from replk_jax.models.layers import ConvNorm, ReparameterizableModule, rematerialized
from replk_jax.models.network import register_network
from replk_jax.models.reparam_convs import ReparamLargeKernelConv
from replk_jax.models.stored import StoredField, stored_architecture
from replk_jax.ops.materialize import materialize


@dataclasses.dataclass(frozen=True)
class MobileNetV2Architecture(Architecture):
    """The hyper-parameters that distinguish one MobileNet V2 from another.

    The default is MobileNet V2 of width 1.0 (its paper's Table 2).

    Attributes:
      kernel_sizes: K of the depthwise convolutions, one per stage, odd.
      small_kernel: size of a parallel kernel beside every larger one, odd, or None for none.
      shortcuts: whether blocks that keep size and width are residual.
      layers, channels, strides, expansions: number of blocks, width, stride of the first block
        (1 or 2), and hidden width over input width; one per stage.
      stem_channels, last_channels: width of the first and of the last convolution.
      in_channels: channels of the images.
      dilation: of every depthwise convolution (RepLKNet's paper, arXiv:2203.06717v1, Table 11).
        An `output_stride` multiplies it.

    Raises:
      ValueError: an architecture that cannot exist.
    """

    stem_stride: ClassVar[int] = 2

    kernel_sizes: OddPerStage = (3, 3, 3, 3, 3, 3, 3)
    small_kernel: OddOrNone = None
    shortcuts: Flag = True
    layers: PerStage = (1, 2, 3, 4, 3, 3, 1)
    channels: PerStage = (16, 24, 32, 64, 96, 160, 320)
    strides: PerStage = (1, 2, 2, 2, 1, 2, 1)
    expansions: PerStage = (1, 6, 6, 6, 6, 6, 6)
    stem_channels: Count = 32
    last_channels: Count = 1280
    in_channels: Count = 3
    dilation: Count = 1

    def check(self) -> None:
        """See `Architecture`."""
        if self.small_kernel is not None and self.small_kernel >= max(self.kernel_sizes):
            raise ValueError(
                f"small_kernel={self.small_kernel} must be smaller than the largest of "
                f"kernel_sizes={self.kernel_sizes}; None builds no small kernel."
            )
        if not set(self.strides) <= {1, 2}:
            raise ValueError(f"strides must be 1 or 2; got {self.strides}.")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return self.channels

    @property
    def entry_strides(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return self.strides


class InvertedResidual(ReparameterizableModule, kw_only=True):
    """project(ReLU6(depthwise(ReLU6(expand(x))))) [+ x], each convolution with batch norm.

    No activation follows the projection: it is the linear bottleneck. Without expansion
    (`expansion` 1) the depthwise convolution is `conv_0`, otherwise `conv_1`.

    Attributes:
      kernel_size, small_kernel: of the depthwise convolution, as in `MobileNetV2Architecture`.
      features: output channels.
      expansion: channels of the depthwise convolution over those of the input.
      stride, dilation: of the depthwise convolution.
      shortcut: whether to add x if the width stays the same.
    """

    kernel_size: int
    small_kernel: int | None
    features: int
    expansion: int
    stride: int
    dilation: int
    shortcut: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), features)."""
        channels = x.shape[-1]
        conv_norm = partial(ConvNorm, **self.common_kwargs())
        y, j = x, 0
        if self.expansion != 1:
            expand = conv_norm(features=self.expansion * channels, name="conv_0")
            y, j = nn.relu6(expand(y, train)), 1
        y = nn.relu6(self.depthwise(y.shape[-1], name=f"conv_{j}")(y, train))
        y = conv_norm(features=self.features, name=f"conv_{j + 1}")(y, train)
        if self.shortcut and self.features == channels:
            y = materialize(x + y)
        return y

    @nn.nowrap
    def depthwise(self, channels: int, name: str) -> nn.Module:
        """The depthwise convolution, with the parallel small kernel if that is smaller."""
        settings: dict[str, Any] = dict(
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            **self.common_kwargs(),
            name=name,
        )
        if self.small_kernel is not None and self.small_kernel < self.kernel_size:
            return ReparamLargeKernelConv(small_kernel=self.small_kernel, **settings)
        return ConvNorm(features=channels, depthwise=True, **settings)


@register_network
class MobileNetV2(Backbone, kw_only=True):
    """MobileNet V2 as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("mobilenet_v2_13_reparam")
        backbone = replk_jax.create_model("mobilenet_v2", out_indices=(1, 6), output_stride=16)

    A backbone ends with the last stage: it lacks the 1 x 1 convolution `conv2`.

    Kernels and biases have PyTorch's default initialisation, as in every network here.
    torchvision's own (Kaiming normal by fan-out; 0.01 for the classifier) suits 3 x 3 kernels.
    RepLKNet's paper states none for large kernels, and a batch norm follows every kernel.

    Attributes:
      dropout_rate: on the input of the classifier, in training; torchvision uses 0.2.
      architecture, num_classes, out_indices, output_stride, contract_dilation, remat, deploy,
        dtype, param_dtype, implementation: see `Backbone`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Backbone.stored_fields,
        "architecture": stored_architecture(MobileNetV2Architecture),
    }
    head_name: ClassVar[str] = "classifier"
    rates: ClassVar[tuple[str, ...]] = ("dropout_rate",)

    architecture: MobileNetV2Architecture  # pyright: ignore[reportIncompatibleVariableOverride]  # modules are frozen
    dropout_rate: float = 0.0

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        """See `Backbone`."""
        arch = self.architecture
        conv1 = ConvNorm(
            features=arch.stem_channels,
            kernel_size=3,
            stride=arch.stem_stride,
            **self.common_kwargs(),
            name="conv1",
        )
        x = nn.relu6(conv1(x, train))
        outputs, block = [], rematerialized(InvertedResidual, self.remat)
        for s, stage in enumerate(self.stage_samplings()):
            for i, sampling in enumerate(stage.blocks(arch.layers[s])):
                x = block(
                    kernel_size=arch.kernel_sizes[s],
                    small_kernel=arch.small_kernel,
                    features=arch.channels[s],
                    expansion=arch.expansions[s],
                    stride=sampling.stride,
                    dilation=arch.dilation * sampling.entry_dilation,
                    # Not where dilation replaces a stride: the strided block has no shortcut.
                    shortcut=arch.shortcuts and not sampling.reduces,
                    **self.common_kwargs(),
                    name=f"layer{s + 1}_{i}",
                )(x, train)
            outputs.append(x)
        return outputs, x

    @property
    def final_channels(self) -> int:
        """See `Backbone`."""
        return self.architecture.last_channels

    @nn.nowrap
    def final_feature_map(self, x: jax.Array, train: bool) -> jax.Array:
        """See `Backbone`. The 1 x 1 convolution `conv2` follows the stages."""
        width = self.final_channels
        return nn.relu6(ConvNorm(features=width, **self.common_kwargs(), name="conv2")(x, train))

    @nn.nowrap
    def pool(self, x: jax.Array, train: bool) -> jax.Array:
        """See `Backbone`. Dropout follows the average pool."""
        return nn.Dropout(self.dropout_rate)(super().pool(x, train), deterministic=not train)

    @nn.nowrap
    def module_groups(self) -> list[ModuleGroup]:
        """See `Backbone`."""
        layers = self.architecture.layers
        last = 1 + len(layers)
        return [
            ModuleGroup("conv1", 0, ("conv1",)),
            *stage_groups("layer", layers),
            ModuleGroup("conv2", last, ("conv2",)),
            ModuleGroup("head", last, (self.head_name,)),
        ]


_LAST_STAGE_7 = (3, 3, 3, 3, 3, 7, 7)  # the last two stages share the last resolution
_LAST_STAGE_13 = (3, 3, 3, 3, 3, 13, 13)

FAMILY = ModelFamily(
    name="mobilenet_v2",
    network=MobileNetV2,
    architecture=MobileNetV2Architecture,
    # The rows of tables 2, 3 and 4 of RepLKNet's paper, without repetitions.
    architectures={
        "mobilenet_v2": MobileNetV2Architecture(),
        "mobilenet_v2_no_shortcuts": MobileNetV2Architecture(shortcuts=False),
        "mobilenet_v2_9": MobileNetV2Architecture((9,) * 7),
        "mobilenet_v2_9_reparam": MobileNetV2Architecture((9,) * 7, small_kernel=3),
        "mobilenet_v2_13": MobileNetV2Architecture((13,) * 7),
        "mobilenet_v2_13_no_shortcuts": MobileNetV2Architecture((13,) * 7, shortcuts=False),
        "mobilenet_v2_13_reparam": MobileNetV2Architecture((13,) * 7, small_kernel=3),
        "mobilenet_v2_last_7": MobileNetV2Architecture(_LAST_STAGE_7, small_kernel=3),
        "mobilenet_v2_last_13": MobileNetV2Architecture(_LAST_STAGE_13, small_kernel=3),
        # Table 11 of its first arXiv version: 3 x 3 kernels dilated to span 9 x 9 and 13 x 13.
        "mobilenet_v2_dilated_4": MobileNetV2Architecture(dilation=4),
        "mobilenet_v2_dilated_6": MobileNetV2Architecture(dilation=6),
    },
    synonyms={r"mobilenetv2(?:100|1\.0\d*)": "mobilenet_v2"},  # width 1.0
    lookalikes={
        r"mobilenetv2(?:\d{3}d?|\d\.\d+)": (
            "a MobileNetV2 of another width or depth. Give channels, layers, stem_channels and "
            "last_channels to create_model('mobilenet_v2', ...)."
        ),
        r"mobilenet(?:v[1345]|edgetpu).*": "a MobileNet other than V2, which is not supported.",
    },
)
