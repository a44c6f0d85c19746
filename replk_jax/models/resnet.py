"""ResNet (He et al., CVPR 2016, arXiv:1512.03385), with basic or bottleneck blocks.

The variables have torchvision's names: `layer3.0.conv2.weight` and `layer3.0.bn2.weight` there
are `params/layer3_0/conv2/{conv/kernel,bn/scale}` here.

RepLKNet's paper compares its effective receptive field with that of ResNet-101 and 152 (Figure 1).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.architecture import Architecture, Count, Flag, OneOf, PerStage
from replk_jax.models.backbone import Backbone, ModuleGroup, stage_groups
from replk_jax.models.dilation import Sampling
from replk_jax.models.family import ModelFamily
from replk_jax.models.layers import ConvNorm, ReparameterizableModule, rematerialized
from replk_jax.models.network import register_network
from replk_jax.models.stored import StoredField, stored_architecture
from replk_jax.ops.materialize import materialize


@dataclasses.dataclass(frozen=True)
class ResNetArchitecture(Architecture):
    """The hyper-parameters of a ResNet.

    Attributes:
      layers: number of blocks, one per stage.
      channels: width of the 3 x 3 convolutions, one per stage. The stage output is four times as
        wide with bottleneck blocks, and equally wide with basic blocks. The first entry is also the
        width of the stem.
      in_channels: channels of the images.
      block: "basic" (two 3 x 3 convolutions, ResNet-18 and 34) or "bottleneck" (1 x 1, 3 x 3 and
        1 x 1, ResNet-50 and deeper).
      stride_in_1x1: whether the stride of a bottleneck block is in its first 1 x 1 convolution, as
        in the paper and in networks converted from Caffe, or in the 3 x 3 one, as in torchvision
        ("v1.5").

    Raises:
      ValueError: an architecture that cannot exist.
    """

    stem_stride: ClassVar[int] = 4  # of the first convolution and the max pool

    layers: PerStage
    channels: PerStage = (64, 128, 256, 512)
    in_channels: Count = 3
    block: Annotated[str, OneOf(("basic", "bottleneck"))] = "bottleneck"
    stride_in_1x1: Flag = False

    def check(self) -> None:
        """See `Architecture`."""
        if self.stride_in_1x1 and self.block == "basic":
            raise ValueError(
                'block="basic" has no 1 x 1 convolution before its 3 x 3 ones: set '
                'stride_in_1x1=False, or block="bottleneck".'
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return tuple(BLOCKS[self.block].expansion * width for width in self.channels)


class ResidualBlock(ReparameterizableModule, kw_only=True):
    """ReLU(shortcut(x) + residual(x)), each convolution followed by batch norm.

    The shortcut is x; or `downsample`, a 1 x 1 convolution with batch norm, where the architecture
    changes size or width.

    Attributes:
      features: channels of the 3 x 3 convolutions.
      sampling: stride and dilation.
      stride_in_1x1: see `ResNetArchitecture`.
    """

    expansion: ClassVar[int]  # output channels over `features`

    features: int
    sampling: Sampling
    stride_in_1x1: bool

    def residual(self, conv_norm: Callable[..., ConvNorm], x: jax.Array, train: bool) -> jax.Array:
        """The convolutions beside the shortcut, of (N, H, W, I) as `__call__`."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), expansion features)."""
        conv_norm = partial(ConvNorm, **self.common_kwargs())
        y, width = self.residual(conv_norm, x, train), self.expansion * self.features
        if self.sampling.reduces or x.shape[-1] != width:
            downsample = conv_norm(features=width, stride=self.sampling.stride, name="downsample")
            x = downsample(x, train)
        return materialize(nn.relu(x + y))


class BasicBlock(ResidualBlock, kw_only=True):
    """A residual block of two 3 x 3 convolutions, `conv1` and `conv2`.

    Attributes: see `ResidualBlock`.
    """

    expansion: ClassVar[int] = 1

    def residual(self, conv_norm: Callable[..., ConvNorm], x: jax.Array, train: bool) -> jax.Array:
        """conv2(ReLU(conv1(x))); the stride is in the first."""
        stride, entry_dilation, dilation, _ = self.sampling
        conv3x3 = partial(conv_norm, features=self.features, kernel_size=3)
        y = nn.relu(conv3x3(stride=stride, dilation=entry_dilation, name="conv1")(x, train))
        return conv3x3(dilation=dilation, name="conv2")(y, train)


class Bottleneck(ResidualBlock, kw_only=True):
    """A residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions, `conv1` to `conv3`.

    Attributes: see `ResidualBlock`.
    """

    expansion: ClassVar[int] = 4

    def residual(self, conv_norm: Callable[..., ConvNorm], x: jax.Array, train: bool) -> jax.Array:
        """conv3(ReLU(conv2(ReLU(conv1(x)))))."""
        stride, entry_dilation, dilation, _ = self.sampling
        if self.stride_in_1x1:
            first, second = dict(stride=stride), dict(dilation=dilation)
        else:
            first, second = {}, dict(stride=stride, dilation=entry_dilation)
        width = self.features
        y = nn.relu(conv_norm(features=width, **first, name="conv1")(x, train))
        y = nn.relu(conv_norm(features=width, kernel_size=3, **second, name="conv2")(y, train))
        return conv_norm(features=self.expansion * width, name="conv3")(y, train)


BLOCKS: dict[str, type[ResidualBlock]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


@register_network
class ResNet(Backbone, kw_only=True):
    """ResNet as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("resnet_101", out_indices=(3,))

    Kernels and biases start as PyTorch's defaults, like those of every network here.

    Attributes:
      architecture, num_classes, out_indices, output_stride, contract_dilation, remat, deploy,
        dtype, param_dtype, implementation: see `Backbone`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Backbone.stored_fields,
        "architecture": stored_architecture(ResNetArchitecture),
    }
    head_name: ClassVar[str] = "fc"

    architecture: ResNetArchitecture  # pyright: ignore[reportIncompatibleVariableOverride]  # modules are frozen

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        """See `Backbone`."""
        arch = self.architecture
        stem = ConvNorm(
            features=arch.channels[0], kernel_size=7, stride=2, **self.common_kwargs(), name="conv1"
        )
        x = nn.relu(stem(x, train))
        # jax2onnx patches nn.max_pool: its version takes window_shape by name only, and ignores
        # explicit padding. XLA fuses the two operations.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")

        outputs, block = [], rematerialized(BLOCKS[arch.block], self.remat)
        for s, stage in enumerate(self.stage_samplings()):
            for i, sampling in enumerate(stage.blocks(arch.layers[s])):
                x = block(
                    features=arch.channels[s],
                    sampling=sampling,
                    stride_in_1x1=arch.stride_in_1x1,
                    **self.common_kwargs(),
                    name=f"layer{s + 1}_{i}",
                )(x, train)
            outputs.append(x)
        return outputs, x

    @nn.nowrap
    def module_groups(self) -> list[ModuleGroup]:
        """See `Backbone`."""
        layers = self.architecture.layers
        return [
            ModuleGroup("conv1", 0, ("conv1",)),
            *stage_groups("layer", layers),
            ModuleGroup("head", 1 + len(layers), (self.head_name,)),
        ]


FAMILY = ModelFamily(
    name="resnet",
    network=ResNet,
    architecture=ResNetArchitecture,
    # Table 1 of the paper. RepLKNet's Figure 1 compares receptive fields with the last two.
    architectures={
        "resnet_18": ResNetArchitecture((2, 2, 2, 2), block="basic"),
        "resnet_34": ResNetArchitecture((3, 4, 6, 3), block="basic"),
        "resnet_50": ResNetArchitecture((3, 4, 6, 3)),
        "resnet_101": ResNetArchitecture((3, 4, 23, 3)),
        "resnet_152": ResNetArchitecture((3, 8, 36, 3)),
    },
    lookalikes={
        r"resnet\d+": (
            "a ResNet of another depth. Give layers to create_model('resnet_18', ...) for basic "
            "blocks, or to create_model('resnet_50', ...) for bottleneck blocks."
        ),
        r"resnet(?:\d+[a-z]|[a-z]).*|.+resnet.*|.*(?:resne[xs]t|res2net).*": (
            "a variant of ResNet that is not known here."
        ),
    },
)
