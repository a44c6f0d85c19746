"""A network of a tiny backbone with heads, in place of segmenters and detectors."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

import replk_jax
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.layers import ConvNorm, ReparameterizableModule, convolution
from replk_jax.models.network import register_network
from replk_jax.models.stored import COUNT, StoredField
from tests.helpers import TINY


class ScoreHead(ReparameterizableModule, kw_only=True):
    """A 3 x 3 convolution with batch norm, ReLU, and a 1 x 1 convolution to class scores."""

    channels: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, num_classes)."""
        conv_norm = ConvNorm(
            features=self.channels, kernel_size=3, **self.common_kwargs(), name="conv_norm"
        )
        x = nn.relu(conv_norm(x, train))
        return convolution(self, x, self.num_classes, 1, name="conv_seg")


@register_network
class TinySegmenter(CompositeNetwork, kw_only=True):
    """Class scores of the last stage; in training those of the stage before it as well.

    Attributes:
      channels: width of both heads.
      others: see `CompositeNetwork`; the backbone has `out_indices`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **CompositeNetwork.stored_fields,
        "channels": COUNT,
    }

    num_classes: int | None = 5
    channels: int = 6

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Maps (N, H, W, in_channels) to scores (N, H / t, W / t, num_classes), or two of them."""
        self.check_call(x)
        *_, auxiliary, last = self.backbone(x, train)
        fields = dict(channels=self.channels, num_classes=self.num_classes, **self.common_kwargs())
        scores = ScoreHead(**fields, name="decode_head")(last, train)
        if not (train or self.is_initializing()):
            return scores
        return scores, ScoreHead(**fields, name="auxiliary_head")(auxiliary, train)


def tiny_segmenter(architecture=TINY, backbone=None, **fields) -> TinySegmenter:
    """A segmenter of both stages of a two-stage backbone, whose fields `backbone` may set."""
    of_backbone = {"num_classes": None, "out_indices": (0, 1), **(backbone or {})}
    return TinySegmenter(backbone=replk_jax.create_model(architecture, **of_backbone), **fields)
