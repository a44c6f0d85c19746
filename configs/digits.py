"""A small RepLKNet on handwritten digits: minutes on a laptop, no network needed.

13 x 13 kernels on 8 x 8 feature maps: larger than the feature map, as in the paper's last stages.
Reaches 98 % on the 299 test images.

    python -m train.main --config configs/digits.py --workdir out/digits

`--config.model.name=NAME` takes any model of `python -m replk_jax models`, shallow and narrow but
otherwise as named: `mobilenet_v2_13` has its 13 x 13 kernels, `repvgg_b1g4` its groups. A RepLKNet
always has two stages here, with kernels 13 and 7.

The values were chosen here, to train within minutes. They are not from a paper.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    common.without_augmentation(config)
    config.model.in_channels = 1
    config.model.replknet.kernel_sizes = (13, 7)
    config.model.replknet.layers = (1, 1)
    config.model.replknet.channels = (16, 32)
    config.model.replknet.drop_path_rate = 0.1
    config.model.repvgg.layers = (2, 2, 2, 1)
    config.model.repvgg.channels = (16, 16, 32, 32, 64)
    config.model.mobilenet_v2.layers = (1, 1, 2, 2, 1, 2, 1)
    config.model.mobilenet_v2.channels = (8, 12, 16, 24, 32, 40, 64)
    config.model.mobilenet_v2.stem_channels = 8
    config.model.mobilenet_v2.last_channels = 128
    config.model.resnet.layers = (1, 1, 1, 1)
    config.model.resnet.channels = (8, 16, 16, 32)
    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.crop_scale = (0.6, 1.0)
    config.data.crop_ratio = (0.8, 1.25)
    config.data.flip = False
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.batch_size = 64
    config.eval_batch_size = 64
    config.epochs = 30.0
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_epochs = 3.0
    config.log_every_steps = 10
    config.eval_every_epochs = 2.0
    config.checkpoints.every_steps = 100
    return config
