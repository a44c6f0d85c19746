"""RepLKNet-XL from scratch for 15 epochs, as it was pre-trained on MegData-73M.

MegData-73M is not public. The recipe runs on any other labelled set: TensorFlow Datasets by
`data.name`, or class folders by `data.folder`.

    python -m train.main --config configs/xl_pretraining.py --workdir out/xl \\
        --config.data.name=NAME --config.data.data_dir=DATA_DIR

From appendix A of the paper (arXiv:2203.06717): 15 epochs, batch 2048, learning rate 1.5e-3,
stochastic depth 0.2, no mixup or cutmix, no small kernels. Mean and standard deviation 0.5 are
those of the released checkpoint. The rest is as for 31B (configs/31b.py): AdamW,
weight decay 0.05, cosine to 1e-6, RandAugment, random erasing and label smoothing. Chosen here: 224
x 224 pixels, 1 epoch of warm-up, no EMA (as on ImageNet-22K), 32 images on each of 64 GPUs; on
fewer, `configs/xl_pretraining.py:gpus=8`.

`data.eval_split` names the split to evaluate on; it may be a part of the training split, as in
configs/imagenet22k.py. Images that cannot be read are replaced by the next ones. configs/xl_320.py
fine-tunes the result at 320 x 320.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(gpus: str = "") -> ConfigDict:
    config = common.get_config()
    config.model.name = "replknet_xl"
    config.model.replknet.drop_path_rate = 0.2
    config.model.dtype = "bfloat16"
    config.data.eval_crop_fraction = 0.875
    config.data.unreadable = "replace"
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.epochs = 15.0
    config.ema_decay = 0.0
    config.optimizer.peak_lr = 1.5e-3
    config.optimizer.warmup_epochs = 1.0
    common.on_gpus(config, gpus, images=32)
    return config
