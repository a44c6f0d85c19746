"""A released RepLKNet-31B on images of your own: class folders, one GPU.

`DIR/train/<class>/<image>` and `DIR/val/<class>/<image>`. The backbone starts from the checkpoint
and the classifier from random weights. The learning rate is a fortieth of the paper's for training
from scratch and falls towards the image, by the paper's factor of 0.7 from layer to layer. There is
little augmentation. These values were chosen here. 30 epochs, 1 epoch of warm-up, weight decay 1e-8
and stochastic depth 0.2 are those of the official fine-tuning from ImageNet-22K at 224
(configs/from_22k.py).

    python -m train.main --config configs/finetune.py --workdir out/finetune \\
        --config.data.folder=DIR --config.init_from=RepLKNet-31B_ImageNet-22K-to-1K_224.pth

For a checkpoint of 384 pixels: --config.data.image_size=384 and a smaller --config.batch_size.
An epoch of 1,000 images is 9.4e13 floating-point operations: some seconds on an A100, estimated as
in configs/31b.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    common.without_augmentation(config)
    config.init_reset_head = True
    config.model.name = "replknet_31b"
    config.model.replknet.drop_path_rate = 0.2
    config.model.dtype = "bfloat16"
    config.data.eval_split = "val"
    config.data.eval_crop_fraction = 0.875
    config.batch_size = 32
    config.eval_batch_size = 32
    config.epochs = 30.0
    config.optimizer.peak_lr = 1e-4
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-8
    config.optimizer.layer_decay = 0.7
    config.log_every_steps = 10
    return config
