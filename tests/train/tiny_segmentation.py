"""A configuration of segmentation that trains in seconds."""

from ml_collections import ConfigDict

from configs.segmentation import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model.replknet.kernel_sizes = (7, 5)
    config.model.replknet.layers = (1, 1)
    config.model.replknet.channels = (16, 24)
    config.model.replknet.small_kernel = 3
    config.model.replknet.drop_path_rate = 0.1
    config.segmenter.channels = 16
    config.segmenter.auxiliary_channels = 8
    config.data.limits = config.test.limits = (96, 48)
    config.data.crop_size = (32, 32)
    config.test.pictures = 2
    config.batch_size = 8
    config.eval_batch_size = 8
    config.steps = 30
    config.eval_every_steps = 15
    config.checkpoints.every_steps = 15
    config.optimizer.peak_lr = 3e-3
    config.optimizer.warmup_steps = 4
    config.log_every_steps = 5
    return config
