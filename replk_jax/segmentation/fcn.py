"""FCN's head: Long et al., "Fully Convolutional Networks" (arXiv:1411.4038), in its usual form.

It also is the auxiliary head of the other networks.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax

from replk_jax.models.parts import register_part
from replk_jax.models.stored import COUNT, FLAG, MOST_LAYERS, StoredField
from replk_jax.segmentation.head import SegmentationHead, concatenate

_INDEX = StoredField(lambda value: type(value) is int and abs(value) <= MOST_LAYERS)
_NUMBER = StoredField(lambda value: type(value) is int and 0 <= value <= MOST_LAYERS)


@register_part
class FCNHead(SegmentationHead, kw_only=True):
    """3 x 3 convolutions on one feature map, whose size the logits have.

    Attributes:
      in_index: of the feature map among those of the backbone; negative numbers count from the
        end.
      num_convs: number of convolutions; with 0, the classifier sees the feature map itself.
      kernel_size: of the convolutions; odd.
      concat_input: whether another convolution sees the input beside the output of the others.
      others: see `SegmentationHead`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **SegmentationHead.stored_fields,
        "in_index": _INDEX,
        "num_convs": _NUMBER,
        "kernel_size": COUNT,
        "concat_input": FLAG,
    }

    in_index: int = -1
    num_convs: int = 2
    kernel_size: int = 3
    concat_input: bool = True

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """See `SegmentationHead`."""
        x = inputs = feature_maps[self.in_index]
        for i in range(self.num_convs):
            x = self.conv(x, train, f"convs_{i}", self.kernel_size)
        if self.concat_input:
            x = self.conv(concatenate([inputs, x]), train, "conv_cat", self.kernel_size)
        return x

    @nn.nowrap
    def check_feature_maps(self, count: int) -> None:
        """See `SegmentationHead`."""
        if not -count <= self.in_index < count:
            raise ValueError(
                f"in_index={self.in_index} of an {type(self).__name__} is none of the {count} "
                "feature maps of the backbone."
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        super().check_fields()
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, or the feature map would shift; got {self.kernel_size}."
            )
