"""RepLKNet-31B and 31L on the 21,841 classes of ImageNet-22K at 224 x 224 (arXiv:2203.06717).

The network follows a colon, `31b` or `31l`; the default is 31b:

    python -m train.prepare FOLDER --name imagenet22k --data_dir DATA_DIR --keep_unreadable
    python -m train.main --config configs/imagenet22k.py:31l --workdir out/22k_31l \\
        --config.data.data_dir=DATA_DIR

Fine-tuned by configs/from_22k.py, 31b reaches 85.20 % on ImageNet-1K at 224 pixels and 85.99 % at
384, 31l 86.63 % at 384. Appendix A of the paper: 90 epochs, stochastic depth 0.1, 128 GPUs with 32
images each; on fewer, `:31l,gpus=64`. The public command (DingXiaoH/RepLKNet-pytorch): learning
rate 4e-3, 5 epochs of warm-up, weight decay 0.05, no EMA; all else as in configs/31b.py. 14.2
million images make 1.2e20 floating-point operations of 31b, and 2.5e20 of 31l: 10 and 20 hours on
128 A100, estimated as in configs/31b.py.

FOLDER has the 21,841 class folders in FOLDER/train/ (the release of 2011; that of winter 2021 has
fewer). It must be prepared: only then is a part of a split a random sample. Images that cannot be
read are kept and, in training, replaced by the next ones. There is no validation split, and the
official runs were not evaluated: the accuracy shown is that on 20,000 training images.
"""

from ml_collections import ConfigDict

from configs import common

MODELS = {"31b": "replknet_31b", "31l": "replknet_31l"}


def get_config(text: str = "31b") -> ConfigDict:
    row, gpus = common.row_and_gpus(text)
    config = common.get_config()
    config.model.name = MODELS[common.known(row or "31b", MODELS)]
    config.model.replknet.drop_path_rate = 0.1
    config.model.dtype = "bfloat16"
    config.data.name = "imagenet22k"
    config.data.eval_split = "train[:20000]"
    config.data.eval_crop_fraction = 0.875
    config.data.unreadable = "replace"
    config.augmentation.mixup_group_size = 32
    config.batch_size = 4096
    config.epochs = 90.0
    config.ema_decay = 0.0
    config.optimizer.warmup_epochs = 5.0
    common.on_gpus(config, gpus, images=32)
    return config
