"""Cascade Mask R-CNN with RepLKNet on COCO (arXiv:2203.06717, section 4.4 and Table 9).

Network and pre-training follow a colon; the default is 31b. The published AP of boxes and of masks
on the validation set in per cent, at a single scale, and the images per GPU of the official runs:

    31b       52.2  45.2   1   ImageNet-1K
    31b_22k   53.0  46.0   1   ImageNet-22K
    31l_22k   53.9  46.5   1   ImageNet-22K
    xl        55.5  48.0   4   MegData-73M

    python -m train.main --config configs/detection/cascade_mask_rcnn_replknet.py:31b \\
        --workdir out/cascade_31b --config.data.folder=coco \\
        --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth

All values are those of the published configurations (DingXiaoH/RepLKNet-pytorch) with their base
files of mmdetection: 36 epochs with a tenth of the rate from epochs 27 and 33 on, AdamW with 4e-4,
weight decay 0.05 but on norms, a linear warm-up from a thousandth over 500 steps, no limit on the
gradient, no layer-wise decay. Images are mirrored, then either resized to one of eleven short sides
of 480 to 800, or resized to 400, 500 or 600, cropped, and resized to one of the eleven. All batch
norms train, those of the box heads too, over the batch of all GPUs.

Where they are unclear:

- The number of GPUs is not stated. 64 images a step are a guess: the rate is four times that of
  Swin's runs with 16 images.
- The published XL is evaluated during training with ImageNet's mean and std, a slip. They are 0.5
  throughout here.
- The paper says that XL has a stage-wise decay of the learning rate, without a factor; the
  configuration has none: --config.optimizer.layer_decay=0.4 --config.optimizer.layer_decay_by=stage
  is that of ImageNet.
- Which of the ImageNet networks a run started from (of 224 or 384 pixels) is not stated.
- Activation checkpointing makes the official code update running statistics twice a step. Here they
  are updated once.

Convolutions are computed in bfloat16, the official ones in float32 (--config.model.dtype=float32).
`:31b,gpus=8` is for 8 GPUs with one image each at a time: the gradient is accumulated over
micro-batches, a batch norm sees one of these, and the losses are divided by the numbers of its
objects. None of these runs has been made with this package.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.detection import common


class _Row(NamedTuple):
    """A run. `images` is the number of images on a GPU at a time."""

    model: str
    drop_path_rate: float
    images: int


ROWS = {
    "31b": _Row("replknet_31b", 0.6, 1),
    "31b_22k": _Row("replknet_31b", 0.4, 1),
    "31l_22k": _Row("replknet_31l", 0.7, 1),
    "xl": _Row("replknet_xl", 0.5, 4),
}


def get_config(text: str = "31b") -> ConfigDict:
    name, gpus = common.row_and_gpus(text)
    name = common.known(name or "31b", ROWS)
    row = ROWS[name]
    config = common.get_config()
    config.detector.name = "cascade_mask_rcnn"
    config.model.name = row.model
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = row.drop_path_rate
    common.crop_policy(config.data)
    if name == "xl":
        config.detector.norm_intermediate_features = True
        config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.batch_size = 64
    config.epochs = 36.0
    config.optimizer.milestones = (27, 33)
    config.optimizer.peak_lr = 4e-4
    config.optimizer.warmup_from = 1e-3
    common.on_gpus(config, gpus, row.images)
    return config
