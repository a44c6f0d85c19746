"""Single-stage detectors: a head on every level of the pyramid."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.structures import Detections, Truths
from replk_jax.models.network import register_network
from replk_jax.models.parts import stored_part
from replk_jax.models.stored import StoredField


@register_network
class SingleStageDetector(DetectionNetwork, kw_only=True):
    """FCOS.

    Attributes:
      bbox_head: classifies the points of the pyramid, and predicts the boxes about them.
      others: see `DetectionNetwork`.

    Raises:
      TypeError: a head of another class.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **DetectionNetwork.stored_fields,
        "bbox_head": stored_part(FCOSHead),
    }

    bbox_head: FCOSHead

    def __post_init__(self):
        if not isinstance(self.bbox_head, FCOSHead):
            raise TypeError(f"bbox_head must be an FCOSHead; got {type(self.bbox_head).__name__}.")
        super().__post_init__()

    def detect(
        self, pyramid: tuple[jax.Array, ...], sizes: jax.Array, scales: jax.Array | None
    ) -> Detections:
        """See `DetectionNetwork`."""
        return self.bbox_head.detect(self.bbox_head(pyramid), self.pyramid_strides, sizes, scales)

    def losses(
        self,
        pyramid: tuple[jax.Array, ...],
        sizes: jax.Array,
        truths: Truths,
        key: jax.Array | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """See `DetectionNetwork`. Neither the sizes nor the key matter, nor the truths' masks."""
        return self.bbox_head.losses(self.bbox_head(pyramid), self.pyramid_strides, truths)

    def head_outputs(self, pyramid: tuple[jax.Array, ...]) -> Any:
        """See `DetectionNetwork`. The outputs of the head on every level."""
        return self.bbox_head(pyramid)

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the head too."""
        super().check_fields()
        self.bbox_head.check_fields()
        self.bbox_head.check_levels(self.neck.num_outputs)
