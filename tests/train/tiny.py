"""A configuration that trains in seconds."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.replknet.kernel_sizes = (5, 3)
    config.model.replknet.layers = (1, 1)
    config.model.replknet.channels = (8, 16)
    config.model.replknet.small_kernel = 3
    config.data.image_size = 16
    config.batch_size = 32
    config.epochs = 4.0
    config.eval_every_epochs = 1.0
    config.optimizer.warmup_epochs = 0.5
    config.log_every_steps = 5
    config.checkpoints.every_steps = 10
    config.checkpoints.keep = 3
    return config
