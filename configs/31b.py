"""RepLKNet-31B on ImageNet-1K at 224 x 224 for 300 epochs (paper, section 4.2 and appendix).

The paper reports 83.5 % top-1. Of its recipe this has the optimiser and its schedule, label
smoothing, stochastic depth and the random resized crop; RandAugment, mixup, cutmix, random
erasing and the moving average of the weights are not in this project yet, so do not expect
that figure from it.

    python -m train.main --config configs/31b.py --workdir out/31b
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model.name = "replknet_31b"
    config.model.replknet.drop_path_rate = 0.5
    config.model.dtype = "bfloat16"
    config.data.eval_crop_fraction = 0.875
    return config
