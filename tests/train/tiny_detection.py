"""A configuration of detection that trains in seconds."""

from ml_collections import ConfigDict

from configs.detection import common

# Of the detectors with two stages.
_TWO_STAGES = {
    "rpn_channels": 16, "rpn_anchor_scale": 4.0, "rpn_train_pre_nms": 100,
    "rpn_train_post_nms": 50, "rpn_test_pre_nms": 100, "rpn_test_post_nms": 50, "box_convs": 0,
    "box_fcs": 1, "box_fc_channels": 32, "sample_count": 32, "mask_size": 7, "mask_convs": 1,
    "mask_channels": 16,
}  # fmt: skip
_ONE_STAGE = {"channels": 16, "num_convs": 1, "num_groups": 4, "regression_limits": (16,)}


def get_config(name: str = "fcos") -> ConfigDict:
    config = common.get_config()
    config.detector.name = name
    config.detector.update(_ONE_STAGE if name == "fcos" else _TWO_STAGES)
    config.data.masks = "mask" in name
    config.model.replknet.kernel_sizes = (5,)
    config.model.replknet.layers = (1,)
    config.model.replknet.channels = (16,)
    config.model.replknet.small_kernel = 3
    config.model.replknet.drop_path_rate = 0.1
    config.detector.neck_channels = 16
    config.detector.neck_num_outputs = 2
    config.detector.neck_start_level = 0
    config.detector.max_detections = 20
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.scales = ((96, 48), (96, 64))
    config.data.max_objects = 8
    config.test.limits = (96, 64)
    config.test.pictures = 2
    config.batch_size = 4
    config.eval_batch_size = 4
    config.epochs = None
    config.steps = 20
    config.eval_every_epochs = None
    config.eval_every_steps = 10
    config.checkpoints.every_steps = 10
    config.optimizer.schedule = "constant"
    config.optimizer.peak_lr = 3e-3
    config.optimizer.warmup_steps = 4
    config.log_every_steps = 5
    return config
