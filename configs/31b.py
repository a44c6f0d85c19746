"""RepLKNet-31B on ImageNet-1K at 224 x 224 for 300 epochs (arXiv:2203.06717, section 4.2).

Top-1 accuracy of the released network, in per cent: 83.48, of the moving average of the weights.

Every figure is that of the public command (DingXiaoH/RepLKNet-pytorch) and its defaults, which are
those of configs/common.py: AdamW with learning rate 4e-3, 10 epochs of warm-up, cosine to 1e-6,
weight decay 0.05, batch 2048, label smoothing 0.1, mixup 0.8, cutmix 1.0, RandAugment, random
erasing 0.25, EMA 0.9999; stochastic depth 0.5. The crop for evaluation is that of the released
network.

    python -m train.main --config configs/31b.py --workdir out/31b
    python -m train.main --config configs/31b.py:gpus=8 --workdir out/31b

The official run had 32 GPUs with 64 images each, or 8 in four rounds, which is `gpus=8`: the same
batch by accumulation. Batch norm sees what is on the devices at a time, 2,048 images in the one
case and 512 in the other; with `gpus=1` it is 64.

How long a run takes has not been measured. Two days on 8 A100 are an estimate: with other kernels,
the network has been run on one of them at 859 images/s (arXiv:2410.08049), and a training step is
said to take three times as long as that, for each image. Whether the kernels here are as fast there
is not known yet. The 300 epochs are 3.6e19 floating-point operations; what other configurations say
of their time is in proportion to this.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(gpus: str = "") -> ConfigDict:
    config = common.get_config()
    config.model.name = "replknet_31b"
    config.model.replknet.drop_path_rate = 0.5
    config.model.dtype = "bfloat16"
    config.data.eval_crop_fraction = 0.875
    common.on_gpus(config, gpus, images=64)
    return config
