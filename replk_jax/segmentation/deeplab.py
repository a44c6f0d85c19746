"""DeepLabv3's heads: Chen et al., arXiv:1706.05587, and with a decoder arXiv:1802.02611."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax

from replk_jax.models.parts import register_part
from replk_jax.models.stored import COUNT_OR_NONE, StoredField
from replk_jax.ops.resize import adaptive_average_pool, resize_bilinear
from replk_jax.segmentation.head import (
    COUNTS,
    SegmentationHead,
    concatenate,
    conv_init,
)
from replk_jax.segmentation.separable import SeparableConv


@register_part
class DeepLabV3Head(SegmentationHead, kw_only=True):
    """Atrous spatial pyramid pooling (ASPP) of the last feature map, whose size the logits have.

    mmsegmentation calls it ASPPHead.

    Attributes:
      dilations: of the branches; one with dilation 1 has a 1 x 1 kernel, the others have 3 x 3.
      others: see `SegmentationHead`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **SegmentationHead.stored_fields,
        "dilations": COUNTS,
    }

    dilations: tuple[int, ...] = (1, 12, 24, 36)

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """See `SegmentationHead`."""
        return self.aspp(feature_maps[-1], train)

    def aspp(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, channels)."""
        image = self.conv(adaptive_average_pool(x, 1), train, "image_pool_1")
        branches = [resize_bilinear(image, x.shape[1:3], self.align_corners)]
        for i, dilation in enumerate(self.dilations):
            name = f"aspp_modules_{i}"
            if dilation == 1:
                branches.append(self.conv(x, train, name))
            else:
                branches.append(self.dilated(x, train, name, dilation))
        return self.conv(concatenate(branches), train, "bottleneck", 3)

    def dilated(self, x: jax.Array, train: bool, name: str, dilation: int) -> jax.Array:
        """A dilated 3 x 3 branch."""
        return self.conv(x, train, name, 3, dilation=dilation)


@register_part
class DeepLabV3PlusHead(DeepLabV3Head, kw_only=True):
    """ASPP with separable convolutions, and a decoder that sees the first feature map.

    The logits have the size of the first feature map. mmsegmentation calls it
    DepthwiseSeparableASPPHead.

    Attributes:
      low_level_channels: width of the first feature map in the decoder; None for a decoder without
        it, whose logits have the size of the last feature map.
      others: see `DeepLabV3Head`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **DeepLabV3Head.stored_fields,
        "low_level_channels": COUNT_OR_NONE,
    }

    low_level_channels: int | None = 48

    @nn.nowrap
    def check_feature_maps(self, count: int) -> None:
        """See `SegmentationHead`. The decoder needs another feature map than the last."""
        super().check_feature_maps(count)
        if self.low_level_channels and count < 2:
            raise ValueError(
                f"A {type(self).__name__} needs two feature maps; the backbone returns {count}. "
                "Build it with more out_indices, or set low_level_channels=None."
            )

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """See `SegmentationHead`."""
        x = self.aspp(feature_maps[-1], train)
        if self.low_level_channels:
            low = self.conv(
                feature_maps[0], train, "c1_bottleneck", features=self.low_level_channels
            )
            x = resize_bilinear(x, low.shape[1:3], self.align_corners)
            x = concatenate([x, low])
        for i in range(2):
            x = self._separable(x, train, f"sep_bottleneck_{i}", 1)
        return x

    def dilated(self, x: jax.Array, train: bool, name: str, dilation: int) -> jax.Array:
        """See `DeepLabV3Head`."""
        return self._separable(x, train, name, dilation)

    def _separable(self, x: jax.Array, train: bool, name: str, dilation: int) -> jax.Array:
        module = SeparableConv(
            features=self.channels,
            dilation=dilation,
            kernel_init=conv_init,
            **self.common_kwargs(),
            name=name,
        )
        return module(x, train)
