"""The feature pyramid: Lin et al., "Feature Pyramid Networks" (arXiv:1612.03144)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.layers import Conv2D, ReparameterizableModule
from replk_jax.models.parts import NetworkPart, register_part
from replk_jax.models.stored import COUNT, FLAG, MOST_LAYERS, StoredField
from replk_jax.ops.resize import resize_nearest

_INDEX = StoredField(lambda value: type(value) is int and 0 <= value <= MOST_LAYERS)
_OUTPUTS = StoredField(lambda value: type(value) is int and 1 <= value <= MOST_LAYERS)


class _Convolution(ReparameterizableModule, kw_only=True):
    """A convolution with bias in a module `conv`, as mmdetection's trees have it."""

    features: int
    kernel_size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, I) to (N, ceil(H / stride), ceil(W / stride), features)."""
        return Conv2D(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


@register_part
class FPN(NetworkPart, kw_only=True):
    """A feature pyramid, with mmdetection's names and initialisation.

    From the last feature map up, each level is a 1 x 1 convolution of its feature map plus the
    level below, resized to its size by nearest neighbours. A 3 x 3 convolution follows.

    Attributes:
      channels: of all outputs.
      num_outputs: number of outputs. Those beyond the feature maps halve the size of the output
        before.
      start_level: the first feature map of the backbone that is used.
      extra_convs: whether the outputs beyond the feature maps are 3 x 3 convolutions of stride 2,
        as FCOS has them. Otherwise they are every second row and column of the output before.
      relu_before_extra_convs: whether a ReLU precedes all of these convolutions but the first.
      others: see `NetworkPart`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "channels": COUNT,
        "num_outputs": _OUTPUTS,
        "start_level": _INDEX,
        "extra_convs": FLAG,
        "relu_before_extra_convs": FLAG,
    }

    channels: int = 256
    num_outputs: int = 5
    start_level: int = 0
    extra_convs: bool = False
    relu_before_extra_convs: bool = False

    @nn.compact
    def __call__(self, feature_maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Maps the feature maps of a backbone to a pyramid.

        Args:
          feature_maps: (N, H, W, C), from the largest to the smallest.

        Returns:
          `num_outputs` feature maps (N, H', W', channels), from the largest to the smallest.
        """
        laterals = [
            self._convolution(f"lateral_convs_{i}")(x)
            for i, x in enumerate(feature_maps[self.start_level :])
        ]
        pyramid = [laterals.pop()]
        for lateral in reversed(laterals):
            pyramid.insert(0, lateral + resize_nearest(pyramid[0], lateral.shape[1:3]))
        outputs = [self._convolution(f"fpn_convs_{i}", 3)(x) for i, x in enumerate(pyramid)]
        for i in range(len(pyramid), self.num_outputs):
            x = outputs[-1]
            if self.extra_convs:
                if self.relu_before_extra_convs and i > len(pyramid):
                    # Not `nn.relu`: the counters of published numbers do not see this one.
                    x = jnp.where(x > 0, x, 0)
                outputs.append(self._convolution(f"fpn_convs_{i}", 3, stride=2)(x))
            else:
                outputs.append(x[:, ::2, ::2])
        return tuple(outputs)

    @nn.nowrap
    def strides(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Size of the image over the size of each output.

        Args:
          strides: the same of the feature maps of the backbone.
        """
        levels = list(strides[self.start_level :])
        while len(levels) < self.num_outputs:
            levels.append(2 * levels[-1])
        return tuple(levels)

    @nn.nowrap
    def check_feature_maps(self, count: int) -> None:
        """Raises ValueError if the pyramid does not fit a backbone with `count` feature maps."""
        used = count - self.start_level
        if not 1 <= used <= self.num_outputs:
            raise ValueError(
                f"An FPN with start_level {self.start_level} and {self.num_outputs} outputs takes "
                f"{self.start_level + 1} to {self.start_level + self.num_outputs} feature maps; "
                f"the backbone returns {count}. Build it with other out_indices."
            )

    @nn.nowrap
    def _convolution(self, name: str, kernel_size: int = 1, stride: int = 1) -> _Convolution:
        return _Convolution(
            features=self.channels,
            kernel_size=kernel_size,
            stride=stride,
            **self.common_kwargs(),
            name=name,
        )
