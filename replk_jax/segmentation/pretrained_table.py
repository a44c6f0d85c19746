"""The table of published segmentation checkpoints: who published which file, and its evaluation.

They are those of RepLKNet's authors (DingXiaoH/RepLKNet-pytorch). Their README states the links and
the mIoU, and the name of one file; the configurations beside it state the test protocols. No hash
was published.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.models.pretrained_composite import PretrainedComposite, from_google_drive
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.segmentation.table import SEGMENTERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedSegmenter(PretrainedComposite):
    """A published segmentation checkpoint.

    Attributes:
      align_corners: of the network.
      miou: published mIoU on the validation images at a single scale, in per cent.
      miou_multi_scale: the same with `MULTI_SCALE` and flipped images.
      others: see `PretrainedComposite`. The preprocessing is the test protocol at a single scale.
    """

    network = SegmentationNetwork
    usual_data_set = "ade20k"

    preprocessing: SegmentationProtocol
    align_corners: bool
    miou: float
    miou_multi_scale: float

    @property
    def backbone(self) -> str:
        """See `PretrainedComposite`."""
        return SEGMENTERS[self.model].backbone

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `PretrainedComposite`."""
        return {
            "align_corners": self.align_corners,
            "pool_scales": (1, 2, 3, 6),
            "output_stride": None,
        }

    def results(self) -> str:
        """See `PretrainedComposite`."""
        return (
            f"{self.miou} % mIoU on {self.data_set}, {self.miou_multi_scale} % with several scales "
            "and flipped images"
        )


MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

_ADE20K = (2048, 512)
_SLIDE_640 = SegmentationProtocol(_ADE20K, window=640, stride=426)


def _upernet(
    tag: str,
    file_id: str,
    protocol: SegmentationProtocol,
    miou: float,
    miou_multi_scale: float,
    *,
    name: str | None = None,
    pretraining: str = "ImageNet-1K",
) -> PretrainedSegmenter:
    """A UPerNet of RepLKNet's authors.

    Args:
      tag, miou, miou_multi_scale, pretraining: as in `PretrainedSegmenter`.
      file_id, name: as of `from_google_drive`.
      protocol: `preprocessing`.
    """
    is_city = "_cityscapes." in tag
    return PretrainedSegmenter(
        tag=tag,
        files=from_google_drive(file_id, name),
        pretraining=pretraining,
        data_set="cityscapes" if is_city else "ade20k",
        num_classes=19 if is_city else 150,
        preprocessing=protocol,
        align_corners=is_city,
        licence="MIT",
        paper="2203.06717",
        miou=miou,
        miou_multi_scale=miou_multi_scale,
    )


PRETRAINED_SEGMENTERS: tuple[PretrainedSegmenter, ...] = (
    _upernet(
        "upernet_replknet_31b_cityscapes.in1k",
        "1j3YwToRqTHHi7ocln0iBz1tE6hItD_JO",
        SegmentationProtocol((2049, 1025)),
        83.1, 83.5,
        name="RepLKNet-31B_ImageNet-1K_UperNet_Cityscapes",
    ),
    _upernet(
        "upernet_replknet_31b_ade20k.in1k",
        "1ZV1CP1KzeSdH6_wKw4ytVe9BlCGHf89s",
        SegmentationProtocol(_ADE20K),
        49.9, 50.6,
    ),
    _upernet(
        "upernet_replknet_31b_ade20k.in22k",
        "1W2W4nD2HzTsG_yP9ppLYAqMo3T3JHBNW",
        _SLIDE_640,
        51.5, 52.3,
        pretraining="ImageNet-22K",
    ),
    _upernet(
        "upernet_replknet_31l_ade20k.in22k",
        "1nrZ723LC3QYjcVHJm8jpOOcecfWMsjxL",
        _SLIDE_640,
        52.4, 52.7,
        pretraining="ImageNet-22K",
    ),
    _upernet(
        "upernet_replknet_xl_ade20k.meg73m",
        "14GbBI8tdeEl_ECytDCdrfAfNm1McqMv4",
        dataclasses.replace(_SLIDE_640, mean=(0.5,) * 3, std=(0.5,) * 3),
        55.2, 56.0,
        pretraining="MegData73M",
    ),
)  # fmt: skip
