"""FCOS with RepLKNet-31B on COCO (arXiv:2203.06717, section 4.4 and Table 9).

    python -m train.main --config configs/detection/fcos_replknet.py --workdir out/fcos_31b \\
        --config.data.folder=coco --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth

The published AP of boxes on the validation set is 47.0 %, at a single scale.

All values are those of the published configuration (DingXiaoH/RepLKNet-pytorch) with its base files
of mmdetection: 24 epochs with a tenth of the rate from epochs 16 and 22 on, AdamW with 2e-4, weight
decay 0.05 but on norms, a third of the rate in the first 500 steps, gradients cut at the norm 35;
images resized to short sides of 640 or 800 and mirrored at random; drop path 0.5, no layer-wise
decay. All batch norms train, over the batch of all GPUs, and the group norms of the head too.

Where it is unclear:

- The number of GPUs is not stated. With two images on each, 16 images are mmdetection's eight GPUs.
- The published file merges the momentum of SGD into AdamW, with which it does not start. It is left
  out here.
- Which of the ImageNet networks the run started from (of 224 or 384 pixels) is not stated.
- The batches of mmdetection have the size of their largest image, those of this package one of two
  sizes; see config.data.buckets.
- Activation checkpointing makes the official code update running statistics twice a step. Here they
  are updated once.

Convolutions are computed in bfloat16, the official ones in float32 (--config.model.dtype=float32).
`:gpus=8` is for 8 GPUs that take their share of the batch at once, two images each. On fewer, the
gradient is accumulated over micro-batches: a batch norm sees one of these, and the losses are
divided by the numbers of its objects. The run has not been made with this package.
"""

from ml_collections import ConfigDict

from configs.detection import common

IMAGES = 2  # on a GPU at a time


def get_config(gpus: str = "") -> ConfigDict:
    config = common.get_config()
    config.detector.name = "fcos"
    config.model.name = "replknet_31b"
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = 0.5
    config.optimizer.warmup = "constant"
    config.optimizer.warmup_from = 1 / 3
    config.optimizer.clip_norm = 35.0
    common.on_gpus(config, gpus, IMAGES)
    return config
