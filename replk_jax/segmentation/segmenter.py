"""Networks for semantic segmentation: a backbone, a decode head and an auxiliary head."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import flax.linen as nn
import jax

from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Variables, register_network
from replk_jax.models.parts import stored_part
from replk_jax.models.stored import FLAG, StoredField
from replk_jax.segmentation.head import SegmentationHead

_STORED_HEAD = stored_part(SegmentationHead, optional=True)


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
      backbone: with `out_indices` in ascending order. It and the heads take `deploy`, `dtype`,
        `param_dtype` and `implementation` from this network, the heads also `num_classes` and
        `align_corners`.
      remat, deploy, dtype, param_dtype, implementation: see `Network`.

    Raises:
      TypeError: a backbone that is no `Backbone`, or a head that is no `SegmentationHead`.
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
        for name in ("decode_head", "auxiliary_head"):
            head = getattr(self, name)
            absent = head is None and name == "auxiliary_head"
            if not (absent or isinstance(head, SegmentationHead)):
                raise TypeError(f"{name} must be a SegmentationHead; got {type(head).__name__}.")
        super().__post_init__()

    @nn.nowrap
    def without_auxiliary_head(self, variables: Variables) -> tuple[Self, Variables]:
        """See `Network`."""
        if self.auxiliary_head is None:
            return self, variables
        kept = {
            collection: {name: node for name, node in tree.items() if name != "auxiliary_head"}
            for collection, tree in variables.items()
        }
        return self.clone(auxiliary_head=None), kept

    @nn.nowrap
    def hyperparameters(self) -> dict[str, Any]:
        """See `Network`."""
        fields = super().hyperparameters()
        return fields if self.auxiliary_head is not None else fields | {"auxiliary_head": "none"}

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the backbone and the heads too."""
        super().check_fields()
        if self.num_classes is None:
            raise ValueError(f"A {type(self).__name__} needs num_classes.")
        if type(self.align_corners) is not bool:
            raise ValueError(f"align_corners must be True or False; got {self.align_corners!r}.")
        stages = self.backbone.out_indices or ()
        if list(stages) != sorted(set(stages)):
            raise ValueError(
                "The heads take feature maps from the largest to the smallest: out_indices of the "
                f"backbone must be in ascending order; got {stages}."
            )
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                head.check_fields()
                head.check_feature_maps(len(stages))

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
        feature_maps = cast("tuple[jax.Array, ...]", self.backbone(x, train))
        logits = self.decode_head(feature_maps, train)
        if not (train or self.is_initializing()):
            return logits
        head = self.auxiliary_head
        return logits, None if head is None else head(feature_maps, train)
