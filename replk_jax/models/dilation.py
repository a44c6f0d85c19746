"""Output strides: dilation in place of strides, for dense prediction.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv:1706.05587),
section 3.1. The variables stay the same, and every feature map of the network with strides is a
subsample of the one with dilation.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Sampling(NamedTuple):
    """Stride and dilation of a block.

    Attributes:
      stride: of the one convolution in the block that may have a stride.
      entry_dilation: of the convolutions up to and including that one.
      dilation: of the convolutions after it, and of the blocks that follow in the stage.
    """

    stride: int = 1
    entry_dilation: int = 1
    dilation: int = 1

    @property
    def reduces(self) -> bool:
        """Whether the architecture has a stride here, even if dilation replaces it."""
        return self.stride != 1 or self.dilation != self.entry_dilation

    def blocks(self, count: int) -> "list[Sampling]":
        """The sampling of each of `count` blocks of a stage; only the first may have a stride."""
        return [self] + [Sampling(1, self.dilation, self.dilation)] * (count - 1)


def sample_stages(
    strides: Sequence[int], stem_stride: int, output_stride: int | None
) -> list[Sampling]:
    """Sampling of the first block of every stage.

    A stride that would make the feature map smaller than 1 / `output_stride` of the image becomes
    dilation of the convolutions after it. The convolution that loses its stride still reads the
    output of the stage before, so it has that stage's dilation.

    Args:
      strides: of the architecture, one per stage.
      stem_stride: product of the strides before the first stage.
      output_stride: image size over the size of the last feature map; None keeps all strides.
    """
    stages, reached, dilation = [], stem_stride, 1
    for stride in strides:
        kept = stride if output_stride is None or reached * stride <= output_stride else 1
        reached *= kept
        stages.append(Sampling(kept, dilation, dilation * stride // kept))
        dilation = stages[-1].dilation
    return stages
