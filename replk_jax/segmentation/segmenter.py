"""Networks for semantic segmentation: a backbone, a decode head and an auxiliary head."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import register_network
from replk_jax.models.stored import FLAG, StoredField
from replk_jax.segmentation.head import SegmentationHead, head_from_description

_STORED_HEAD = StoredField(
    lambda value: value is None or isinstance(value, Mapping),
    encode=lambda head: head and head.describe(),
    decode=lambda description: description and head_from_description(description),
)
# The fields that the heads take from the network.
_SHARED = ("deploy", "dtype", "param_dtype", "implementation", "num_classes", "align_corners")


@register_network
class SegmentationNetwork(CompositeNetwork, kw_only=True):
    """A backbone with a decode head and, for training, an auxiliary head.

    The tree of variables mirrors mmsegmentation's EncoderDecoder: `backbone`, `decode_head` and
    `auxiliary_head`. `create_segmenter` builds the usual networks.

    Attributes:
      num_classes: K.
      decode_head: maps the feature maps of the backbone to logits.
      auxiliary_head: the same for the auxiliary loss; None without one. Only training calls it.
      align_corners: of all bilinear resizing, in the heads and of the logits; see
        `ops.resize.bilinear_matrix`.
      backbone: with `out_indices`. It and the heads take `deploy`, `dtype`, `param_dtype` and
        `implementation` from this network, the heads also `num_classes` and `align_corners`.
      remat, deploy, dtype, param_dtype, implementation: see `Network`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **CompositeNetwork.stored_fields,
        "align_corners": FLAG,
        "decode_head": _STORED_HEAD,
        "auxiliary_head": _STORED_HEAD,
    }

    num_classes: int | None = 150
    align_corners: bool = False
    decode_head: SegmentationHead
    auxiliary_head: SegmentationHead | None = None

    def __post_init__(self):
        self.dtype, self.param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
        shared = {name: getattr(self, name) for name in _SHARED}
        self.decode_head = self.decode_head.clone(**shared)
        if self.auxiliary_head is not None:
            self.auxiliary_head = self.auxiliary_head.clone(**shared)
        super().__post_init__()

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the backbone and the heads too."""
        super().check_fields()
        if self.num_classes is None:
            raise ValueError(f"A {type(self).__name__} needs num_classes.")
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                head.check_fields()

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array | None]:
        """Runs the network.

        Args:
          x: normalised images, (N, H, W, in_channels), floating point; any H and W.
          train: see `Network`.

        Returns:
          Logits (N, h, w, num_classes), in at least float32: h and w are H and W over the stride
          of the decode head, rounded up. With `train`, a pair of the logits of both heads, which
          differ in size; the second is None without an auxiliary head.

        Raises:
          ValueError: images of another shape, or invalid fields.
          TypeError: images that are not floating point.
        """
        self.check_call(x)
        feature_maps = self.backbone(x, train)
        logits = self.decode_head(feature_maps, train)
        if not (train or self.is_initializing()):
            return logits
        head = self.auxiliary_head
        return logits, None if head is None else head(feature_maps, train)
