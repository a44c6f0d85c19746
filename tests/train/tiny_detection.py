"""A configuration of detection that trains in seconds."""

from ml_collections import ConfigDict

from configs.detection import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model.replknet.kernel_sizes = (5,)
    config.model.replknet.layers = (1,)
    config.model.replknet.channels = (16,)
    config.model.replknet.small_kernel = 3
    config.model.replknet.drop_path_rate = 0.1
    config.detector.neck_channels = 16
    config.detector.neck_num_outputs = 2
    config.detector.neck_start_level = 0
    config.detector.channels = 16
    config.detector.regression_limits = (16,)
    config.detector.num_convs = 1
    config.detector.num_groups = 4
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
