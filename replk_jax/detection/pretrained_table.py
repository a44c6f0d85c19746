"""The table of published detection checkpoints: who published which file, and its evaluation.

They are those of RepLKNet's authors (DingXiaoH/RepLKNet-pytorch). Their README states the links and
the AP, and the name of one file; the configurations beside it state how the images are prepared. No
hash was published.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.table import DETECTORS
from replk_jax.models.pretrained_composite import PretrainedComposite, from_google_drive


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedDetector(PretrainedComposite):
    """A published detection checkpoint.

    Attributes:
      box_ap: published AP of boxes on the validation images of COCO 2017, in per cent.
      mask_ap: the same of instance masks; None for a network without masks.
      others: see `PretrainedComposite`.
    """

    network = DetectionNetwork
    usual_data_set = "coco"

    preprocessing: DetectionProtocol
    box_ap: float
    mask_ap: float | None

    @property
    def backbone(self) -> str:
        """See `PretrainedComposite`."""
        return DETECTORS[self.model].backbone

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `PretrainedComposite`."""
        settings = _FCOS if DETECTORS[self.model].kind == "fcos" else _CASCADE
        return {**settings, "output_stride": None}

    def results(self) -> str:
        """See `PretrainedComposite`."""
        masks = "" if self.mask_ap is None else f", {self.mask_ap} % mask AP"
        return f"{self.box_ap} % box AP{masks} on {self.data_set}"


_TEST = {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100}
_FCOS: Mapping[str, Any] = {
    "neck": {"num_outputs": 5, "relu_before_extra_convs": True},
    "bbox_head": {
        **_TEST,
        "num_groups": 32,
        "norm_on_bbox": False,
        "centerness_on_reg": False,
        "candidates_per_level": 1000,
    },
    "strides": (8, 16, 32, 64, 128),
}
_CASCADE: Mapping[str, Any] = {
    "neck": {"num_outputs": 5},
    "rpn_head": {
        "anchor_scale": 8.0,
        "anchor_ratios": (0.5, 1.0, 2.0),
        "test_pre_nms": 1000,
        "test_post_nms": 1000,
        "nms_threshold": 0.7,
    },
    "roi_head": {
        **_TEST,
        "sampling_ratio": 0,
        "mask_size": 14,
        "box_loss": "giou",
        "box_loss_weight": 10.0,
    },
    "strides": (4, 8, 16, 32, 64),
    "stds": ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)),
}


def _row(
    tag: str,
    file_id: str,
    box_ap: float,
    mask_ap: float | None = None,
    *,
    name: str | None = None,
    pretraining: str = "ImageNet-1K",
    preprocessing: DetectionProtocol | None = None,
) -> PretrainedDetector:
    """A detector of RepLKNet's authors.

    Args:
      tag, box_ap, mask_ap, pretraining, preprocessing: as in `PretrainedDetector`.
      file_id, name: as of `from_google_drive`.
    """
    return PretrainedDetector(
        tag=tag,
        files=from_google_drive(file_id, name),
        pretraining=pretraining,
        data_set="coco",
        num_classes=80,
        preprocessing=preprocessing or DetectionProtocol(),
        licence="MIT",
        paper="2203.06717",
        box_ap=box_ap,
        mask_ap=mask_ap,
    )


PRETRAINED_DETECTORS: tuple[PretrainedDetector, ...] = (
    _row("fcos_replknet_31b_coco.in1k", "1g0jSpONBF2wJDXYhB7P3mbqAVE587Myi", 47.0),
    _row(
        "cascade_mask_rcnn_replknet_31b_coco.in1k",
        "1XqWSkQZSLMIhyaQvaIhGbuFhdDoRJQ4Z",
        52.2, 45.2,
    ),
    _row(
        "cascade_mask_rcnn_replknet_31b_coco.in22k",
        "1faI-MiNuPidum6dC6dGADfYWe6J-bTAz",
        53.0, 46.0,
        name="RepLKNet-31B_ImageNet-22K_CascMaskRCNN_COCO",
        pretraining="ImageNet-22K",
    ),
    _row(
        "cascade_mask_rcnn_replknet_31l_coco.in22k",
        "1qLQONhIjCEuykhdy-wHx1Ah9lT3v2OXh",
        53.9, 46.5,
        pretraining="ImageNet-22K",
    ),
    _row(
        "cascade_mask_rcnn_replknet_xl_coco.meg73m",
        "1i0TqfwQJQUVHWdB5oyDgxlUUqzPZmIVr",
        55.5, 48.0,
        pretraining="MegData73M",
        preprocessing=DetectionProtocol(mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
)  # fmt: skip
