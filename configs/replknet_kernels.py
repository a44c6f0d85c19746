"""RepLKNet with kernels of 3 to 31 on ImageNet-1K for 120 epochs (arXiv:2203.06717, Table 5).

The largest kernel of the network follows a colon; without one it is 31:

    python -m train.main --config configs/replknet_kernels.py:13 --workdir out/replknet_13

Top-1 accuracy that the paper reports, in per cent:

    3   3-3-3-3       82.11
    7   7-7-7-7       82.73
    13  13-13-13-13   83.02
    25  25-25-25-13   83.00
    31  31-29-27-13   83.07

Of its recipe this has the optimiser and its schedule, label smoothing and the random resized crop;
RandAugment, mixup, cutmix and random erasing are not in this project yet, so do not expect those
figures from it. The rate of stochastic depth is not in the paper, which follows Swin's recipe; 0.5
is that of its 300 epochs of 31B.
"""

from ml_collections import ConfigDict

from configs import common

MODELS = {
    "3": "replknet_3",
    "7": "replknet_7",
    "13": "replknet_13",
    "25": "replknet_25",
    "31": "replknet_31b",
}


def get_config(kernel: str = "31") -> ConfigDict:
    config = common.get_config()
    config.model.name = MODELS[common.known(kernel, MODELS)]
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = 0.5
    config.data.eval_crop_fraction = 0.875
    config.epochs = 120.0
    return config
