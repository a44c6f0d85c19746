"""A segmenter on a laptop: which digit covers each pixel? No network needed.

Handwritten digits in random sizes and colours, overlapping, on patches of photographs
(train/data/scattered_digits.py): 1,500 images to train on and 300 of other writers on other
photographs to test on. UperNet on a RepLKNet with 13 x 13 kernels.

    python -m train.main --config configs/segmentation/scattered_digits.py --workdir out/scattered
"""

from ml_collections import ConfigDict

from configs.segmentation import common


def get_config(kernel_size: str = "13") -> ConfigDict:
    config = common.get_config()
    size = int(kernel_size)
    config.model.name = "replknet_31b"
    config.model.replknet.kernel_sizes = (size, size, 7 if size > 7 else size)
    config.model.replknet.layers = (1, 2, 2)
    config.model.replknet.channels = (32, 64, 128)
    config.model.replknet.small_kernel = 3 if size > 3 else 0
    config.segmenter.channels = 48
    config.segmenter.auxiliary_channels = 32
    config.data.name = "scattered_digits"
    config.data.eval_split = "test"
    config.data.limits = config.test.limits = (128, 96)
    config.data.ratio_range = (0.7, 1.0)
    config.data.crop_size = (64, 64)
    config.data.flip = False
    config.data.photometric = False
    config.batch_size = 16
    config.eval_batch_size = 50
    config.steps = None
    config.epochs = 20.0
    config.eval_every_steps = None
    config.eval_every_epochs = 10.0
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_steps = 100
    config.log_every_steps = 50
    config.checkpoints.every_steps = 500
    return config
