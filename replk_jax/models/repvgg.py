"""RepVGG: "Making VGG-style ConvNets Great Again" (Ding et al., CVPR 2021, arXiv:2101.03697).

The modules carry the names of the official PyTorch code (DingXiaoH/RepVGG), so that
`stage1.0.rbr_dense.conv.weight` there is `params/stage1_0/rbr_dense/conv/kernel` here.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.models.architecture import Architecture, Count, Counts, Flag, OneOf, whole_numbers
from replk_jax.models.backbone import Backbone, ModuleGroup, stage_groups
from replk_jax.models.dilation import Sampling, sample_stages
from replk_jax.models.family import ModelFamily
from replk_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    ReparameterizableModule,
    convolution,
    pytorch_init,
    rematerialized,
)
from replk_jax.models.network import register_network
from replk_jax.models.reparam_convs import (
    AsymmetricConvBlock,
    DiracConv,
    DiverseBranchBlock,
    ResidualKernelConv,
)
from replk_jax.models.stored import COUNT_OR_NONE, StoredField, stored_architecture
from replk_jax.ops.broadcasting import scale_channels
from replk_jax.ops.dtypes import accumulation_dtype

# The training-time structures of a layer, with the top-1 accuracy that the paper's section 4.2
# reports for B0 on ImageNet after 120 epochs, where it could be checked.
BLOCKS = (
    "repvgg",  # table 6, identity and 1x1: 75.14; table 7, "Full-featured reparam"
    "plain",  # table 6, neither: 72.39
    "without_identity",  # table 6, 1x1 only: 73.15
    "without_1x1",  # table 6, identity only: 74.79
    "identity_without_norm",  # table 7, "Identity w/o BN": 74.18
    "norm_after_addition",  # table 7, "Post-addition BN": 73.52
    "relu_in_branches",  # table 7, "+ReLU in branch"; cannot be merged
    "diracnet",  # table 7, "DiracNet": kernel diag(a) I + diag(b) W / |W|
    "trivial",  # table 7, "Trivial Re-param": kernel I + W
    "acb",  # table 7, "ACB": 3x3 + 3x1 + 1x3
    "dbb",  # of a later paper, arXiv:2103.13425
    "residual",  # table 7, "Residual Reorg": 74.56
)
_WITH_1X1 = ("repvgg", "without_identity", "relu_in_branches")
_WITH_IDENTITY = ("repvgg", "without_1x1", "relu_in_branches")


class Layer(NamedTuple):
    """One 3 x 3 layer, in the merged structure.

    Attributes:
      inputs, features: input and output channels.
      stride, groups, dilation: of the convolution.
      reduces: whether the architecture has a stride here, even if dilation replaces it.
    """

    inputs: int
    features: int
    stride: int
    groups: int
    dilation: int = 1
    reduces: bool = False

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape in the architecture."""
        return self.inputs == self.features and self.stride == 1 and not self.reduces

    def conv_kwargs(self) -> dict[str, int]:
        """The fields of the convolution, as keyword arguments."""
        names = ("features", "stride", "groups", "dilation")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class RepVGGArchitecture(Architecture):
    """The hyper-parameters that distinguish one RepVGG from another (paper, tables 2 and 3).

    Attributes:
      layers: number of 3 x 3 layers in each of stages 1 to 4; stage 0 is one layer.
      channels: width of stage 0, then of stages 1 to 4.
      groups: one number for layers 2, 4, 6 and so on, counted through the whole network (stage 0
        is layer 0); the other layers have 1 group. Or a tuple with one entry per layer, stage 0
        first. A tuple that one number can express is stored as that number.
      squeeze_excite: whether every block has squeeze-excite before the ReLU.
      block: the training-time structure of the layers, one of `BLOCKS`: "repvgg", or a variant
        of the paper's section 4.2.
      in_channels: channels of the images.

    Raises:
      ValueError: an architecture that cannot exist.
    """

    stem_stride: ClassVar[int] = 2  # of stage 0

    layers: Counts
    channels: Counts
    groups: int | tuple[int, ...] = 1
    squeeze_excite: Flag = False
    block: Annotated[str, OneOf(BLOCKS)] = "repvgg"
    in_channels: Count = 3

    def check(self) -> None:
        """See `Architecture`."""
        if not self.layers or len(self.channels) != len(self.layers) + 1:
            raise ValueError(
                "channels must have one entry more than layers, for stage 0; got "
                f"layers={self.layers}, channels={self.channels}."
            )
        if self.squeeze_excite and min(self.channels) < SqueezeExcite.reduction:
            raise ValueError(
                "squeeze_excite narrows every width to one sixteenth, so channels must be at "
                f"least {SqueezeExcite.reduction}; got {self.channels}."
            )
        if self.block == "residual":
            self._check_residual()
        self._check_groups()

    def _check_groups(self):
        given: Any = self.groups
        is_tuple = np.ndim(given) > 0
        groups = whole_numbers("groups", given if is_tuple else (given,))
        if is_tuple and len(groups) != 1 + sum(self.layers):
            raise ValueError(
                f"groups must be one number, or one for each of the {1 + sum(self.layers)} layers, "
                f"stage 0 first; got {len(groups)}."
            )
        # A single number is that of layer 2 and of every second one after it.
        of_every_second = groups[min(2, len(groups) - 1)]
        if not is_tuple or groups == _groups_by_layer(of_every_second, len(groups)):
            groups = of_every_second
        object.__setattr__(self, "groups", groups)
        undivided = sorted(
            {
                width
                for stage in self.stages()
                for layer in stage
                for width in (layer.inputs, layer.features)
                if width % layer.groups
            }
        )
        if undivided:
            raise ValueError(
                f"groups={groups} must divide the widths of their layers; they do not divide "
                f"{undivided} of channels={self.channels}."
            )

    def _check_residual(self):
        *paired, last = self.layers
        if last != 1 or any(count % 2 for count in paired):
            raise ValueError(
                'block="residual" has a shortcut around every two layers, and a single layer in '
                "the last stage, so layers must be even but for a last 1; got "
                f"layers={self.layers}."
            )
        if self.squeeze_excite:
            raise ValueError(
                'block="residual" has no squeeze-excite: set squeeze_excite=False or another block.'
            )

    @property
    def entry_strides(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return (2,) * len(self.layers)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Architecture`."""
        return self.channels[1:]

    def stages(
        self,
        output_stride: int | None = None,
        contract_dilation: bool = True,
        dilated_layers: int | None = None,
    ) -> list[list[Layer]]:
        """Every layer, by stage, stage 0 first.

        Args:
          output_stride, contract_dilation: see `dilation.sample_stages`.
          dilated_layers: see `RepVGG`.
        """
        counts = (1, *self.layers)
        groups = self.groups
        if isinstance(groups, int):
            groups = _groups_by_layer(groups, sum(counts))
        of_layer, inputs = iter(groups), self.in_channels
        later = sample_stages(
            self.entry_strides, self.stem_stride, output_stride, contract_dilation
        )
        samplings = [Sampling(self.stem_stride), *later]
        stages = []
        for sampling, count, features in zip(samplings, counts, self.channels, strict=True):
            stage = []
            for stride, dilation, _, reduces in sampling.blocks(count):
                stage.append(Layer(inputs, features, stride, next(of_layer), dilation, reduces))
                inputs = features
            stages.append(stage)
        if dilated_layers is None:
            return stages
        first_dilated = sum(counts) - dilated_layers
        numbers = itertools.count()
        return [
            [
                layer if next(numbers) >= first_dilated else layer._replace(dilation=1)
                for layer in stage
            ]
            for stage in stages
        ]


def _groups_by_layer(groups: int, layers: int) -> tuple[int, ...]:
    """Groups in every second layer, layer 0 excepted."""
    return tuple(groups if i > 0 and i % 2 == 0 else 1 for i in range(layers))


class SqueezeExcite(ReparameterizableModule):
    """Scales the channels by a function of their means (Hu et al., arXiv:1709.01507).

    x sigmoid(up(ReLU(down(mean(x))))), with 1 x 1 convolutions `down` and `up`. The mean is over
    height and width.
    """

    reduction: ClassVar[int] = 16  # channels over the channels between the convolutions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        channels = x.shape[-1]
        mean = jnp.mean(x.astype(accumulation_dtype(x.dtype)), (1, 2), keepdims=True)
        hidden = nn.relu(convolution(self, mean, channels // self.reduction, 1, name="down"))
        weights = nn.sigmoid(convolution(self, hidden, channels, 1, name="up"))
        return scale_channels(x.astype(self.dtype), weights)


class RepVGGBlock(ReparameterizableModule, kw_only=True):
    """SE?([3x3 conv-BN] + [1x1 conv-BN] + [BN]), the paper's block before its ReLU (section 3.2).

    The last branch exists where input and output have the same shape. Every training-time
    structure merges into one 3 x 3 convolution with bias, `rbr_reparam`.

    Attributes:
      layer: the merged layer.
      block: the training-time structure, one of `BLOCKS` except "residual".
      squeeze_excite: whether squeeze-excite follows.
    """

    layer: Layer
    block: str
    squeeze_excite: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O)."""
        if self.deploy:
            layer = self.layer
            y = convolution(
                self,
                x,
                layer.features,
                3,
                strides=layer.stride,
                groups=layer.groups,
                dilation=layer.dilation,
                name="rbr_reparam",
            )
        else:
            y = self.training_structure(x, train)
        return SqueezeExcite(**self.common_kwargs(), name="se")(y) if self.squeeze_excite else y

    def training_structure(self, x: jax.Array, train: bool) -> jax.Array:
        """The sum of the branches, or what the variant computes instead."""
        match self.block:
            case "identity_without_norm":
                return self.identity_without_norm(x, train)
            case "norm_after_addition":
                return self.norm_after_addition(x, train)
            case "diracnet" | "trivial" if self.layer.keeps_shape:
                return IdentityKernelConvNorm(
                    block=self.block,
                    groups=self.layer.groups,
                    dilation=self.layer.dilation,
                    **self.common_kwargs(),
                    name="rbr_dense",
                )(x, train)
            case "acb":
                return AsymmetricConvBlock(**self.settings(), name="rbr_acb")(x, train)
            case "dbb":
                return DiverseBranchBlock(**self.settings(), name="rbr_dbb")(x, train)
            case _:
                return self.sum_of_branches(x, train)

    def sum_of_branches(self, x: jax.Array, train: bool) -> jax.Array:
        """The paper's block, with the branches of the variant."""
        relu = self.block == "relu_in_branches"
        suffix = "_relu" if relu else ""
        branches: list[ConvNorm | BatchNorm] = [
            ConvNorm(**self.settings(), kernel_size=3, name=f"rbr_dense{suffix}")
        ]
        if self.block in _WITH_1X1:
            branches.append(ConvNorm(**self.settings(), name=f"rbr_1x1{suffix}"))
        if self.block in _WITH_IDENTITY and self.layer.keeps_shape:
            branches.append(BatchNorm(**self.common_kwargs(), name=f"rbr_identity{suffix}"))
        outputs = [branch(x, train) for branch in branches]
        return reduce(operator.add, map(nn.relu, outputs) if relu else outputs)

    def identity_without_norm(self, x: jax.Array, train: bool) -> jax.Array:
        """[3x3 conv-BN] + [1x1 conv-BN] + x."""
        y = ConvNorm(**self.settings(), kernel_size=3, name=self.dense_name())(x, train)
        y += ConvNorm(**self.settings(), name="rbr_1x1")(x, train)
        return y + x if self.layer.keeps_shape else y

    def norm_after_addition(self, x: jax.Array, train: bool) -> jax.Array:
        """BN([3x3 conv] + [1x1 conv] + x)."""
        y = BareConv(**self.settings(), kernel_size=3, name=self.dense_name())(x)
        y += BareConv(**self.settings(), kernel_size=1, name="rbr_1x1")(x)
        y = y + x if self.layer.keeps_shape else y
        return BatchNorm(**self.common_kwargs(), name="post_bn")(y, train)

    @nn.nowrap
    def dense_name(self) -> str:
        """Records in the name whether x is added, for merging: x has no variables."""
        return "rbr_dense_and_identity" if self.layer.keeps_shape else "rbr_dense"

    @nn.nowrap
    def settings(self) -> dict[str, Any]:
        """The fields that the convolutions of the block share."""
        return self.layer.conv_kwargs() | self.common_kwargs()


class BareConv(ReparameterizableModule, kw_only=True):
    """`ConvNorm` without its batch norm: `conv/kernel` alone.

    Attributes: see `ConvNorm`.
    """

    features: int
    kernel_size: int
    stride: int
    groups: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O)."""
        return convolution(
            self,
            x,
            self.features,
            self.kernel_size,
            strides=self.stride,
            groups=self.groups,
            dilation=self.dilation,
            use_bias=False,
            name="conv",
        )


class IdentityKernelConvNorm(ReparameterizableModule, kw_only=True):
    """A 3 x 3 convolution whose kernel contains the identity, followed by batch norm.

    Attributes:
      block: "diracnet" or "trivial".
      groups: number of channel groups.
      dilation: of both axes.
    """

    block: str
    groups: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        layer = DiracConv
        if self.block == "trivial":
            init = pytorch_init(9 * x.shape[-1] // self.groups)
            layer = partial(ResidualKernelConv, kernel_init=init)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        fields = dict(kernel_size=3, groups=self.groups, dilation=self.dilation, name="conv")
        x = layer(**fields, **dtypes)(x)
        return BatchNorm(**self.common_kwargs(), name="bn")(x, train)


class ResidualPair(ReparameterizableModule, kw_only=True):
    """Two 3 x 3 layers with a shortcut around them, as in ResNet-18, before the last ReLU.

    conv2(ReLU(conv1(x))) + x, each convolution with batch norm. Where the shape changes,
    downsample(x), a 1 x 1 convolution with batch norm, replaces x. The merged structure keeps the
    shortcut.

    Attributes:
      layers: the two layers.
    """

    layers: tuple[Layer, Layer]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), O)."""
        first, second = self.layers
        conv3x3 = partial(ConvNorm, kernel_size=3, **self.common_kwargs())
        y = nn.relu(conv3x3(**first.conv_kwargs(), name="conv1")(x, train))
        y = conv3x3(**second.conv_kwargs(), name="conv2")(y, train)
        if not first.keeps_shape:
            fields = dict(features=second.features, stride=first.stride, name="downsample")
            x = ConvNorm(**fields, **self.common_kwargs())(x, train)
        return y + x


@register_network
class RepVGG(Backbone, kw_only=True):
    """RepVGG as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("repvgg_a0")
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        logits = model.apply(variables, images)

    Attributes:
      dilated_layers: with an `output_stride`, only this many of the last 3 x 3 layers are dilated:
        5 in the paper's "fast" networks for segmentation (section 4.3). None dilates all layers
        after a replaced stride.
      architecture, num_classes, out_indices, output_stride, contract_dilation, remat, deploy,
        dtype, param_dtype, implementation: see `Backbone`. Index 0 of `out_indices` is stage 1 of
        the architecture.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Backbone.stored_fields,
        "architecture": stored_architecture(RepVGGArchitecture),
        "dilated_layers": COUNT_OR_NONE,
    }
    head_name: ClassVar[str] = "linear"

    architecture: RepVGGArchitecture  # pyright: ignore[reportIncompatibleVariableOverride]  # modules are frozen
    dilated_layers: int | None = None

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        """See `Backbone`."""
        outputs = []
        stages = self.architecture.stages(
            self.output_stride, self.contract_dilation, self.dilated_layers
        )
        for s, layers in enumerate(stages):
            for i, block in enumerate(self.blocks(layers)):
                name = f"stage{s}_{i}" if s else "stage0"
                x = nn.relu(block(**self.common_kwargs(), name=name)(x, train))
            if s:
                outputs.append(x)
        return outputs, x

    @nn.nowrap
    def blocks(self, layers: list[Layer]) -> list[Callable[..., nn.Module]]:
        """The blocks of one stage, as partial classes. A ReLU follows each."""
        arch = self.architecture
        if arch.block != "residual":
            fields = dict(block=arch.block, squeeze_excite=arch.squeeze_excite)
            block = rematerialized(RepVGGBlock, self.remat)
            return [partial(block, layer=layer, **fields) for layer in layers]
        if len(layers) == 1:
            fields = layers[0].conv_kwargs()
            return [partial(rematerialized(ConvNorm, self.remat), kernel_size=3, **fields)]
        pairs = zip(layers[::2], layers[1::2], strict=True)
        return [partial(rematerialized(ResidualPair, self.remat), layers=pair) for pair in pairs]

    @nn.nowrap
    def module_groups(self) -> list[ModuleGroup]:
        """See `Backbone`."""
        blocks = [len(self.blocks(layers)) for layers in self.architecture.stages()[1:]]
        return [
            ModuleGroup("stage0", 0, ("stage0",)),
            *stage_groups("stage", blocks),
            ModuleGroup("head", 1 + len(blocks), (self.head_name,)),
        ]

    @property
    def mergeable(self) -> bool:
        """See `Network`."""
        return self.architecture.block != "relu_in_branches"

    @nn.nowrap
    def check_fields(self) -> None:
        """See `Backbone`. Also checks that a merged structure exists, with `deploy`."""
        super().check_fields()
        layers = 1 + sum(self.architecture.layers)
        if not (
            COUNT_OR_NONE.is_valid(self.dilated_layers) and (self.dilated_layers or 1) <= layers
        ):
            raise ValueError(
                f"dilated_layers must be None or 1 to {layers}, the number of 3 x 3 layers; got "
                f"{self.dilated_layers!r}."
            )
        if self.deploy and not self.mergeable:
            raise ValueError(
                'block="relu_in_branches" has no merged structure: a sum of ReLUs is not linear in '
                "the input, so no convolution equals it. Build the model with deploy=False."
            )


def _by_multipliers(layers: tuple[int, ...], a: float, b: float, **fields) -> RepVGGArchitecture:
    """An architecture by the paper's width multipliers: b of the last stage, a of the others."""
    channels = (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return RepVGGArchitecture(layers, channels, **fields)


_A = (2, 4, 14, 1)
_B = (4, 6, 16, 1)

FAMILY = ModelFamily(
    name="repvgg",
    network=RepVGG,
    architecture=RepVGGArchitecture,
    # Tables 2 and 3 of the paper; D2se is from the official code.
    architectures={
        "repvgg_a0": _by_multipliers(_A, 0.75, 2.5),
        "repvgg_a1": _by_multipliers(_A, 1, 2.5),
        "repvgg_a2": _by_multipliers(_A, 1.5, 2.75),
        "repvgg_b0": _by_multipliers(_B, 1, 2.5),
        "repvgg_b1": _by_multipliers(_B, 2, 4),
        "repvgg_b1g2": _by_multipliers(_B, 2, 4, groups=2),
        "repvgg_b1g4": _by_multipliers(_B, 2, 4, groups=4),
        "repvgg_b2": _by_multipliers(_B, 2.5, 5),
        "repvgg_b2g2": _by_multipliers(_B, 2.5, 5, groups=2),
        "repvgg_b2g4": _by_multipliers(_B, 2.5, 5, groups=4),
        "repvgg_b3": _by_multipliers(_B, 3, 5),
        "repvgg_b3g2": _by_multipliers(_B, 3, 5, groups=2),
        "repvgg_b3g4": _by_multipliers(_B, 3, 5, groups=4),
        "repvgg_d2se": _by_multipliers((8, 14, 24, 1), 2.5, 5, squeeze_excite=True),
    },
    lookalikes={r"repvggplus.*|repvgg.+plus.*": "RepVGGplus, which is not known here."},
)
