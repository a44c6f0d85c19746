"""The table of published segmentation checkpoints: who published which file, and its evaluation.

They are those of RepLKNet's authors (DingXiaoH/RepLKNet-pytorch). Their README states the links and
the mIoU, and the name of one file; the configurations beside it state the test protocols. No hash
was published.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.models.pretrained_table import PublishedFile
from replk_jax.segmentation.protocol import SegmentationProtocol


@dataclasses.dataclass(frozen=True)
class PretrainedSegmenter:
    """A published segmentation checkpoint.

    Attributes:
      tag: `HEAD_BACKBONE_DATASET.SOURCE`, where SOURCE names the data set that the backbone was
        first trained on: `in1k`, `in22k` or `meg73m`.
      files: the weights.
      pretraining: the data set that the backbone was first trained on.
      data_set: of the segmentation, a name of `label_sets.names()`.
      num_classes: K.
      preprocessing: the test protocol of the published single-scale mIoU.
      align_corners: of the network.
      licence: SPDX identifier of the licence of the project that publishes the weights.
      paper: arXiv identifier.
      miou: published mIoU on the validation images at a single scale, in per cent.
      miou_multi_scale: the same with `MULTI_SCALE` and flipped images.
    """

    tag: str
    files: tuple[PublishedFile, ...]
    pretraining: str
    data_set: str
    num_classes: int
    preprocessing: SegmentationProtocol
    align_corners: bool
    licence: str | None
    paper: str
    miou: float
    miou_multi_scale: float

    @property
    def model(self) -> str:
        """Name of the network, such as "upernet_replknet_31b_ade20k"."""
        return self.tag.partition(".")[0]

    @property
    def backbone(self) -> str:
        """Name of the backbone for `create_model`."""
        _, *backbone, _ = self.model.split("_")
        return "_".join(backbone)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the weights do not record, as `Composite.read_settings` gives it."""
        return {
            "align_corners": self.align_corners,
            "pool_scales": (1, 2, 3, 6),
            "output_stride": None,
        }


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
      file_id: at Google Drive.
      protocol: `preprocessing`.
      name: of the file without its ending; None where it is not stated.
    """
    is_city = "_cityscapes." in tag
    url = f"https://drive.google.com/file/d/{file_id}/view?usp=sharing"
    return PretrainedSegmenter(
        tag=tag,
        files=(PublishedFile(name, url),),
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
