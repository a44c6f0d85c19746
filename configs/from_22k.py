"""RepLKNet on ImageNet-1K, from networks trained on ImageNet-22K (arXiv:2203.06717, section 4.2).

Network and resolution follow a colon; the default is 31b_224. Top-1 accuracy of the released
networks, in per cent, and the GPUs and images per GPU of the official runs:

    31b_224   85.20   16 x 32
    31b_384   85.99   32 x 16
    31l_384   86.63   32 x 16

    python -m train.main --config configs/from_22k.py:31b_384 --workdir out/from_22k_31b_384 \\
        --config.init_from=RepLKNet-31B_ImageNet-22K.pth

Appendix A of the paper: the GPUs and their images, stochastic depth of 0.2 at 224 and 0.3 at 384,
RandAugment but no mixup or cutmix. The public commands (DingXiaoH/RepLKNet-pytorch): 30 epochs, 1
epoch of warm-up, weight decay 1e-8, EMA 0.9999, and a learning rate of 4e-4 that falls by 0.7 from
layer to layer towards the image and ends at 1e-6, or at 384 at 3e-4.

On fewer GPUs, `:31b_384,gpus=8`. The classifier starts from random weights. 30 epochs, of 3.6e18
floating-point operations at 224 and 1.1e19 and 2.2e19 at 384: 5, 14 and 29 hours on 8 A100,
estimated as in configs/31b.py.
"""

from ml_collections import ConfigDict

from configs import common

# Network, resolution, images per GPU, stochastic depth, last learning rate.
ROWS = {
    "31b_224": ("replknet_31b", 224, 32, 0.2, 1e-6),
    "31b_384": ("replknet_31b", 384, 16, 0.3, 3e-4),
    "31l_384": ("replknet_31l", 384, 16, 0.3, 3e-4),
}


def get_config(text: str = "31b_224") -> ConfigDict:
    row, gpus = common.row_and_gpus(text)
    name, size, images, drop_path_rate, final_lr = ROWS[common.known(row or "31b_224", ROWS)]
    config = common.get_config()
    common.fine_tuning(config)
    config.init_reset_head = True
    config.model.name = name
    config.model.replknet.drop_path_rate = drop_path_rate
    config.data.image_size = size
    config.data.eval_crop_fraction = 0.875 if size < 384 else None
    config.batch_size = 512
    config.optimizer.final_lr = final_lr
    common.on_gpus(config, gpus, images)
    return config
