"""The fields of object detection and instance segmentation.

They have mmdetection's values for FCOS on COCO, where an experiment sets none, and those of
RepLKNet's published configurations (DingXiaoH/RepLKNet-pytorch, detection/configs).
"""

from ml_collections import ConfigDict

from configs import common
from configs.common import known, on_gpus, row_and_gpus
from configs.detection.data import crop_policy, data_fields
from configs.detection.network import detector_fields

__all__ = ["coco", "crop_policy", "get_config", "known", "on_gpus", "row_and_gpus"]


def get_config() -> ConfigDict:
    """The fields of detection."""
    fields = common.run_fields()
    fields["data"] |= data_fields()
    fields |= {
        "task": "detection",
        # The neck and the heads on the backbone of `model`.
        "detector": detector_fields(),
        # How images are tested: the protocol that is stored with the network. See
        # replk_jax.detection.DetectionProtocol.
        "test": {
            "limits": (1333, 800),  # images are resized within (long, short) sides
            "pad_multiple": 32,  # and padded to multiples of it
            # (height, width) of padded images; a program is compiled for each. (): two, that hold
            # all wide and all high images of `limits`.
            "buckets": (),
            # Whether each image is padded to the least multiples instead, as by mmdetection. Scores
            # differ a little, and a program is compiled for each of many shapes.
            "exact_padding": False,
            "pictures": 4,  # of truth and prediction, at each evaluation
            # That computes AP, "faster_coco_eval" or "pycocotools"; both give the same numbers.
            "library": "faster_coco_eval",
        },
    }
    config = ConfigDict(fields)
    coco(config)
    config.ema_decay = 0.0
    config.epochs = 24.0
    config.batch_size = 16
    config.eval_batch_size = 8
    config.log_every_steps = 50
    config.optimizer.schedule = "step"
    config.optimizer.milestones = (16, 22)
    config.optimizer.peak_lr = 2e-4
    config.optimizer.warmup_epochs = None
    config.optimizer.warmup_steps = 500
    config.optimizer.decay_of = "except_norms"
    return config


def coco(config: ConfigDict) -> None:
    """COCO 2017, a folder with train2017, val2017 and annotations."""
    config.data.name = "coco/2017"
    config.data.train_split = "train2017"
    config.data.eval_split = "val2017"
