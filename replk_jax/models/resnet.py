"""ResNet (He et al., CVPR 2016, arXiv:1512.03385) of bottleneck blocks.

It is the baseline whose effective receptive field RepLKNet's paper compares with its own
(Figure 1), for inference and for gradients with respect to the image: there is no recipe to
train it here. The stride of a block is in its 3 x 3 convolution, as torchvision has it ("v1.5"),
whose names the parts carry: `layer3.0.conv2.weight` and `layer3.0.bn2.weight` there are
`params/layer3_0/conv2/{conv/kernel,bn/scale}` here.
"""

import dataclasses
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.architecture import expect_entry_per_stage, keep_whole_numbers
from replk_jax.models.layers import (
    ConvNorm,
    GlobalAveragePool,
    ReparameterizableModule,
    rematerialized,
)
from replk_jax.models.network import Network
from replk_jax.ops.materialize import materialize

_EXPANSION = 4  # a stage's output channels over those of its 3 x 3 convolutions


@dataclasses.dataclass(frozen=True)
class ResNetArchitecture:
    """The hyper-parameters that tell one ResNet of bottleneck blocks from another.

    Attributes:
      layers: number of bottleneck blocks, one per stage.
      channels: width of their 3 x 3 convolutions, one per stage; a stage emits four times as
        many. The first is that of the stem, too.
      in_channels: channels of the images.

    Raises:
      ValueError: an architecture that cannot exist.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    in_channels: int = 3

    def __post_init__(self):
        per_stage = ("layers", "channels")
        keep_whole_numbers(self, per_stage, ("in_channels",))
        expect_entry_per_stage(self, per_stage)


class Bottleneck(ReparameterizableModule, kw_only=True):
    """ReLU(x + conv3(ReLU(conv2(ReLU(conv1(x)))))): 1 x 1, 3 x 3 and 1 x 1, each with batch norm.

    Where size or width change, x passes a 1 x 1 convolution with batch norm, `downsample`.

    Attributes:
      features: channels of the 3 x 3 convolution; the block emits four times as many.
      stride: of the 3 x 3 convolution.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), 4 features)."""
        conv_norm = partial(ConvNorm, **self.structure())
        width, stride = self.features, self.stride
        y = nn.relu(conv_norm(features=width, name="conv1")(x, train))
        y = nn.relu(conv_norm(features=width, kernel_size=3, stride=stride, name="conv2")(y, train))
        y = conv_norm(features=_EXPANSION * width, name="conv3")(y, train)
        if stride != 1 or x.shape[-1] != _EXPANSION * width:
            downsample = conv_norm(features=_EXPANSION * width, stride=stride, name="downsample")
            x = downsample(x, train)
        return materialize(nn.relu(x + y))


class ResNet(Network, kw_only=True):
    """ResNet as a classifier, as a feature extractor or as a backbone.

        model = replk_jax.create_model("resnet_101", out_indices=(3,))

    Kernels and biases start as PyTorch's defaults, like those of every network here.

    Attributes:
      architecture, num_classes, out_indices, remat, deploy, dtype, param_dtype, implementation:
        see `Network`.
    """

    head_name: ClassVar[str] = "fc"

    architecture: ResNetArchitecture

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, *, features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Runs the network.

        Args:
          x: normalised images, (N, H, W, in_channels), floating point; any H and W.
          train: batch norm uses the batch and updates `batch_stats`, which must be mutable.
          features: return what would enter the classifier.

        Returns:
          Logits (N, num_classes), or features (N, 4 channels of the last stage): both in at
          least float32. Or, with `out_indices`, one map (N, H / 4 / 2^s, W / 4 / 2^s, C) for
          each stage s named, in `dtype`; odd sizes round up.

        Raises:
          ValueError: images of another shape, or fields of the module that make no sense.
          TypeError: images that are not floating point.
        """
        arch = self.architecture
        self.check_call(x, features)
        stem = ConvNorm(
            features=arch.channels[0], kernel_size=7, stride=2, **self.structure(), name="conv1"
        )
        x = nn.relu(stem(x, train))
        # jax2onnx replaces nn.max_pool by a function that takes the window by name only, and drops
        # explicit padding. XLA merges the two operations.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")

        outputs, block = [], rematerialized(Bottleneck, self.remat)
        for s, (layers, width) in enumerate(zip(arch.layers, arch.channels, strict=True)):
            for i in range(layers):
                x = block(
                    features=width,
                    stride=2 if s > 0 and i == 0 else 1,
                    **self.structure(),
                    name=f"layer{s + 1}_{i}",
                )(x, train)
            outputs.append(x)
            self.show_stage(s, x)
        if self.out_indices is not None:
            return tuple(outputs[s] for s in self.out_indices)
        return self.classify(GlobalAveragePool()(x), features)
