"""RepLKNet-31B on ImageNet-1K at 224 x 224 for 300 epochs (arXiv:2203.06717, section 4.2).

Top-1 accuracy of the released network, an EMA, in per cent: 83.48.

All values are those of the public command (DingXiaoH/RepLKNet-pytorch) and its defaults, which
configs/common.py has as well: AdamW with learning rate 4e-3, 10 epochs of warm-up, cosine to 1e-6,
weight decay 0.05, batch 2048, label smoothing 0.1, mixup 0.8, cutmix 1.0, RandAugment, random
erasing 0.25, EMA 0.9999; stochastic depth 0.5. The evaluation crop is that of the released network.

    python -m train.main --config configs/31b.py --workdir out/31b
    python -m train.main --config configs/31b.py:gpus=8 --workdir out/31b

The official run had 32 GPUs with 64 images each, or 8 GPUs with accumulation over four
micro-batches, which is `gpus=8`. The statistics of batch norm are those of a micro-batch: of 2,048
images on 32 GPUs, of 512 with `gpus=8`, of 64 with `gpus=1`.

The time of a run has not been measured. Two days on 8 A100 are an estimate: inference with other
kernels runs at 859 images/s on one of them (arXiv:2410.08049), and a training step is assumed to
take three times as long per image. The speed of the kernels of this package on an A100 is not
known. The 300 epochs are 3.6e19 floating-point operations; the times that other configurations name
are in proportion to this.
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
