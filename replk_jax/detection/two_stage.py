"""Two-stage detectors: an RPN proposes boxes, and an RoI head classifies and refines them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.roi_heads import RoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.structures import Detections, Truths
from replk_jax.models.network import register_network
from replk_jax.models.parts import stored_part
from replk_jax.models.stored import StoredField

# `head_outputs` sees the boxes of a grid of this many rows and columns, and the whole image.
_GRID = 3


@register_network
class TwoStageDetector(DetectionNetwork, kw_only=True):
    """Faster, Mask and Cascade R-CNN, according to the RoI head.

    Attributes:
      rpn_head: proposes boxes, from all levels of the pyramid.
      roi_head: classifies, refines and segments them, from the first four levels.
      others: see `DetectionNetwork`.

    Raises:
      TypeError: heads of other classes.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **DetectionNetwork.stored_fields,
        "rpn_head": stored_part(RPNHead),
        "roi_head": stored_part(RoIHead),
    }

    rpn_head: RPNHead
    roi_head: RoIHead

    def __post_init__(self):
        for name, kind in (("rpn_head", RPNHead), ("roi_head", RoIHead)):
            head = getattr(self, name)
            if not isinstance(head, kind):
                raise TypeError(f"{name} must be a {kind.__name__}; got {type(head).__name__}.")
        super().__post_init__()

    def detect(
        self, pyramid: tuple[jax.Array, ...], sizes: jax.Array, scales: jax.Array | None
    ) -> Detections:
        """See `DetectionNetwork`."""
        strides = self.pyramid_strides
        proposals = self.rpn_head.propose(self.rpn_head(pyramid), strides, sizes, train=False)
        return self.roi_head.detect(pyramid, strides, proposals, sizes, scales)

    def losses(
        self,
        pyramid: tuple[jax.Array, ...],
        sizes: jax.Array,
        truths: Truths,
        key: jax.Array | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """See `DetectionNetwork`. Truths without area do not count.

        Raises:
          ValueError: there are mask heads, and the truths have no masks; or truths (N, 0).
        """
        if self.roi_head.masks and truths.masks is None:
            raise ValueError(
                f"A {type(self.roi_head).__name__} with masks learns from truths with masks: give "
                "Truths(..., masks=...), or build the network with masks=False."
            )
        if not truths.classes.shape[1]:
            raise ValueError(
                "Truths have room for no object: pad them to at least one, with valid=False."
            )
        has_area = jnp.all(truths.boxes[..., 2:] > truths.boxes[..., :2], axis=-1)
        truths = truths._replace(valid=truths.valid & has_area)
        strides = self.pyramid_strides
        rpn_key, roi_key = (None, None) if key is None else jax.random.split(key)
        outputs = self.rpn_head(pyramid)
        losses = self.rpn_head.losses(outputs, strides, sizes, truths, rpn_key)
        proposals = self.rpn_head.propose(outputs, strides, sizes, train=True)
        return losses | self.roi_head.losses(
            pyramid, strides, proposals, sizes, truths, roi_key, train
        )

    def head_outputs(self, pyramid: tuple[jax.Array, ...]) -> Any:
        """See `DetectionNetwork`. Those of the RoI head are of a fixed grid of boxes."""
        strides = self.pyramid_strides
        count, rows, columns, _ = pyramid[0].shape
        height, width = rows * strides[0], columns * strides[0]
        steps = jnp.arange(_GRID, dtype=jnp.float32) / _GRID
        y, x = (each.reshape(-1) for each in jnp.meshgrid(steps, steps, indexing="ij"))
        corners = jnp.stack([x, y, x + 1 / _GRID, y + 1 / _GRID], axis=-1)
        corners = jnp.concatenate([corners, jnp.asarray([[0.0, 0.0, 1.0, 1.0]])])
        boxes = corners * jnp.asarray([[width, height, width, height]], jnp.float32)
        boxes = jnp.broadcast_to(boxes, (count, *boxes.shape))
        return self.rpn_head(pyramid), self.roi_head.outputs_of(pyramid, strides, boxes)

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the heads too."""
        super().check_fields()
        self.rpn_head.check_fields()
        self.roi_head.check_fields()
