"""RepLKNet-31B at 384 x 384, from the network trained at 224 (arXiv:2203.06717, section 4.2).

Top-1 accuracy of the released network, in per cent: 84.84.

Appendix A of the paper: 30 epochs, RandAugment but no mixup or cutmix, an EMA of momentum 1e-4. The
public command (DingXiaoH/RepLKNet-pytorch): batch 1024, learning rate 4e-4 to 1e-6, falling by 0.7
from layer to layer towards the image, 1 epoch of warm-up, weight decay 1e-8, stochastic depth 0.8.

    python -m train.main --config configs/31b_384.py --workdir out/31b_384 \\
        --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth

Or from a run of configs/31b.py: --config.init_from=out/31b/checkpoints/STEP --config.init_ema. The
official run had 32 GPUs with 32 images each; on fewer, `configs/31b_384.py:gpus=8`. 30 epochs, of
1.1e19 floating-point operations: 14 hours on 8 A100, estimated as in configs/31b.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(gpus: str = "") -> ConfigDict:
    config = common.get_config()
    common.fine_tuning(config)
    config.model.name = "replknet_31b"
    config.model.replknet.drop_path_rate = 0.8
    config.data.image_size = 384
    config.batch_size = 1024
    common.on_gpus(config, gpus, images=32)
    return config
