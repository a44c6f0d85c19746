"""Output strides: dilation in place of strides, for dense prediction.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv:1706.05587),
section 3.1. The variables stay the same. With `contract_dilation`, every feature map of the network
with strides is a subsample of the one with dilation.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Sampling(NamedTuple):
    """Stride and dilation of a block.

    Attributes:
      stride: of the one convolution in the block that may have a stride.
      entry_dilation: of the convolutions up to and including that one.
      dilation: of the convolutions after it, and of the blocks that follow in the stage.
      reduces: whether the architecture has a stride here, even if dilation replaces it.
    """

    stride: int = 1
    entry_dilation: int = 1
    dilation: int = 1
    reduces: bool = False

    def blocks(self, count: int) -> "list[Sampling]":
        """The sampling of each of `count` blocks of a stage; only the first may have a stride."""
        return [self] + [Sampling(1, self.dilation, self.dilation)] * (count - 1)


def sample_stages(
    strides: Sequence[int],
    stem_stride: int,
    output_stride: int | None,
    contract_dilation: bool = True,
) -> list[Sampling]:
    """Sampling of the first block of every stage.

    A stride that would make the feature map smaller than 1 / `output_stride` of the image becomes
    dilation of the convolutions after it.

    Args:
      strides: of the architecture, one per stage.
      stem_stride: product of the strides before the first stage.
      output_stride: image size over the size of the last feature map; None keeps all strides.
      contract_dilation: whether the convolution that loses its stride, which still reads the
        output of the stage before, has that stage's dilation. Otherwise it has the dilation of its
        own stage.
    """
    stages, reached, dilation = [], stem_stride, 1
    for stride in strides:
        kept = stride if output_stride is None or reached * stride <= output_stride else 1
        reached *= kept
        entry, dilation = dilation, dilation * stride // kept
        if not contract_dilation:
            entry = dilation
        stages.append(Sampling(kept, entry, dilation, stride != 1))
    return stages
