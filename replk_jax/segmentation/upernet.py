"""UPerNet's head: Xiao et al., "Unified Perceptual Parsing" (arXiv:1807.10221)."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from replk_jax.models.parts import register_part
from replk_jax.ops.resize import resize_bilinear
from replk_jax.segmentation.head import concatenate
from replk_jax.segmentation.pspnet import PyramidPoolingHead


@register_part
class UPerHead(PyramidPoolingHead, kw_only=True):
    """Pyramid pooling of the last feature map, and a feature pyramid of all.

    The logits have the size of the first feature map.
    """

    fewest_feature_maps: ClassVar[int] = 2

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """See `SegmentationHead`."""
        *shallow, last = feature_maps
        laterals = [self.conv(x, train, f"lateral_convs_{i}") for i, x in enumerate(shallow)]
        top = self.pyramid(last, train)

        # From the top down, each level gets the sum of all levels above it.
        pyramid = [top]
        for lateral in reversed(laterals):
            pyramid.insert(0, lateral + self._resized(pyramid[0], lateral))
        *levels, top = pyramid

        outputs = [self.conv(x, train, f"fpn_convs_{i}", 3) for i, x in enumerate(levels)]
        outputs.append(top)
        outputs = [self._resized(x, outputs[0]) for x in outputs]
        return self.conv(concatenate(outputs), train, "fpn_bottleneck", 3)

    def _resized(self, x: jax.Array, target: jax.Array) -> jax.Array:
        """The feature map `x`, resized to the size of `target`."""
        return resize_bilinear(x, target.shape[1:3], self.align_corners)
