"""PSPNet's head: Zhao et al., "Pyramid Scene Parsing Network" (arXiv:1612.01105)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from replk_jax.models.parts import register_part
from replk_jax.models.stored import COUNT_OR_NONE, StoredField
from replk_jax.ops.resize import adaptive_average_pool, resize_bilinear
from replk_jax.segmentation.head import COUNTS, SegmentationHead, concatenate

POOL_SCALES = (1, 2, 3, 6)


class PyramidPoolingHead(SegmentationHead, kw_only=True):
    """A head with pyramid pooling.

    Attributes:
      pool_scales: number of windows per side, one for each branch.
      pool_channels: width of each branch; None for `channels`.
      others: see `SegmentationHead`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **SegmentationHead.stored_fields,
        "pool_scales": COUNTS,
        "pool_channels": COUNT_OR_NONE,
    }

    pool_scales: tuple[int, ...] = POOL_SCALES
    pool_channels: int | None = None

    def pyramid(self, x: jax.Array, train: bool) -> jax.Array:
        """Concatenates a feature map and its averages in windows, and fuses them.

        Args:
          x: (N, H, W, C).
          train: batch norms use the statistics of the batch.

        Returns:
          (N, H, W, channels).
        """
        branches = [x]
        for i, scale in enumerate(self.pool_scales):
            pooled = adaptive_average_pool(x, scale)
            width = self.pool_channels or self.channels
            pooled = self.conv(pooled, train, f"psp_modules_{i}_1", features=width)
            branches.append(resize_bilinear(pooled, x.shape[1:3], self.align_corners))
        return self.conv(concatenate(branches), train, "bottleneck", 3)


@register_part
class PSPHead(PyramidPoolingHead, kw_only=True):
    """Pyramid pooling of the last feature map, whose size the logits have."""

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """See `SegmentationHead`."""
        return self.pyramid(feature_maps[-1], train)
