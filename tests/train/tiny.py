"""A configuration that trains in seconds with the whole recipe, and a loss without augmentation."""

from ml_collections import ConfigDict

from configs import digits
from train.data.augmentation import Augmentation
from train.engine.task import Loss
from train.tasks.classification import cross_entropy

# One stage: compiled in half the time of two.
NETWORK = {"kernel_sizes": (5,), "layers": (1,), "channels": (16,), "small_kernel": 3}


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.replknet.update(NETWORK)
    config.data.image_size = 16
    config.data.rand_augment = "rand-m4-n1-mstd0.5"
    config.augmentation.erasing_probability = 0.1
    config.augmentation.mixup_alpha = 0.2
    config.augmentation.cutmix_alpha = 1.0
    config.augmentation.switch_probability = 0.2
    config.augmentation.mixup_group_size = 8
    config.batch_size = 32
    config.accumulation = 2
    config.ema_decay = 0.9
    config.epochs = 4.0
    config.eval_every_epochs = 1.0
    config.optimizer.warmup_epochs = 0.5
    config.log_every_steps = 5
    config.checkpoints.every_steps = 10
    config.checkpoints.keep = 3
    return config


def loss(
    mean: tuple[float, ...] = (0.5,) * 3,
    std: tuple[float, ...] = (0.25,) * 3,
    num_classes: int = 4,
    **augmentation: float,
) -> Loss:
    """Cross entropy, with the named augmentation alone."""
    off = dict.fromkeys(
        ("label_smoothing", "erasing_probability", "mixup_alpha", "cutmix_alpha"), 0.0
    )
    on = {"mix_probability": 1.0, "switch_probability": 0.5, "mixup_group_size": 8}
    return cross_entropy(Augmentation(num_classes, mean, std, **{**off, **on, **augmentation}))
