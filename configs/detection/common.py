"""The fields of object detection and instance segmentation.

They have mmdetection's values for FCOS on COCO, where an experiment sets none, and those of
RepLKNet's published configurations (DingXiaoH/RepLKNet-pytorch, detection/configs).
"""

from ml_collections import ConfigDict, config_dict

from configs import common
from configs.common import known, on_gpus, row_and_gpus
from configs.detection.data import crop_policy, data_fields

__all__ = ["coco", "crop_policy", "get_config", "known", "on_gpus", "row_and_gpus"]


def get_config() -> ConfigDict:
    """The fields of detection."""
    fields = common.run_fields()
    fields["data"] |= data_fields()
    fields |= {
        "task": "detection",
        # The neck and the heads on the backbone of `model`; see replk_jax.create_detector. None is
        # the detector's own value.
        "detector": {
            "name": "fcos",  # faster_rcnn, mask_rcnn, cascade_rcnn or cascade_mask_rcnn
            # Of the feature pyramid: its channels, its levels, and the first feature map of the
            # backbone that it uses.
            "neck_channels": config_dict.placeholder(int),
            "neck_num_outputs": config_dict.placeholder(int),
            "neck_start_level": config_dict.placeholder(int),
            "channels": config_dict.placeholder(int),  # of the head
            "num_convs": config_dict.placeholder(int),  # of each branch of FCOS's head
            "num_groups": config_dict.placeholder(int),  # of its group norms
            # Of FCOS: the largest distance from a point to a side of its box, in pixels, on each
            # level but the last; whether distances are in strides, only points near the centres of
            # objects are positive, and the branch of the boxes predicts the centerness.
            "regression_limits": config_dict.placeholder(tuple),
            "norm_on_bbox": config_dict.placeholder(bool),
            "center_sampling": config_dict.placeholder(bool),
            "centerness_on_reg": config_dict.placeholder(bool),
            # Of two-stage detectors: the channels of the RPN, the side of its square anchors in
            # strides, and the numbers of its boxes before NMS, of each level, and after it.
            "rpn_channels": config_dict.placeholder(int),
            "rpn_anchor_scale": config_dict.placeholder(float),
            "rpn_train_pre_nms": config_dict.placeholder(int),
            "rpn_train_post_nms": config_dict.placeholder(int),
            "rpn_test_pre_nms": config_dict.placeholder(int),
            "rpn_test_post_nms": config_dict.placeholder(int),
            # Of their heads: layers and channels, samples of RoIAlign per axis of a bin (0:
            # adaptive), and the boxes of an image that the losses see.
            "box_convs": config_dict.placeholder(int),
            "box_conv_channels": config_dict.placeholder(int),
            "box_fcs": config_dict.placeholder(int),
            "box_fc_channels": config_dict.placeholder(int),
            "mask_convs": config_dict.placeholder(int),
            "mask_channels": config_dict.placeholder(int),
            "sampling_ratio": config_dict.placeholder(int),
            "sample_count": config_dict.placeholder(int),
            # Objects of an image that are found at most, the least score of each, and the overlap
            # of two of a class above which the one with the lower score is dropped.
            "max_detections": config_dict.placeholder(int),
            "score_threshold": config_dict.placeholder(float),
            "nms_threshold": config_dict.placeholder(float),
            # Whether a batch norm follows each feature map of a RepLKNet's stages.
            "norm_intermediate_features": config_dict.placeholder(bool),
        },
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
