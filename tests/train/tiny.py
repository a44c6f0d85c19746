"""A configuration that trains in seconds."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.kernel_sizes = (5, 3)
    config.model.channels = (4, 8)
    config.model.small_kernel = 3
    config.data.image_size = 16
    config.epochs = 1.0
    config.eval_every_epochs = 0.5
    config.optimizer.warmup_epochs = 0.2
    config.log_every_steps = 4
    config.checkpoints.every_steps = 4
    config.checkpoints.keep = 3
    return config
