"""RepLKNet with kernels of 3 to 31 on ImageNet-1K for 120 epochs (arXiv:2203.06717, Table 5).

The largest kernel of the network follows a colon; the default is 31:

    python -m train.main --config configs/replknet_kernels.py:13 --workdir out/replknet_13

Top-1 accuracy that the paper reports, in per cent:

    3   3-3-3-3       82.11
    7   7-7-7-7       82.73
    13  13-13-13-13   83.02
    25  25-25-25-13   83.00
    31  31-29-27-13   83.07

The recipe is that of the 300 epochs of 31B (configs/31b.py), but with stochastic depth 0.3
(appendix A of the paper) and without an EMA. For 32 GPUs with 64 images each; on fewer,
`:13,gpus=8`. The 120 epochs of 31 are 1.4e19 floating-point operations, those of 3 1.2e19: 19 and
15 hours on 8 A100, estimated as in configs/31b.py.
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


def get_config(text: str = "31") -> ConfigDict:
    kernel, gpus = common.row_and_gpus(text)
    config = common.get_config()
    config.model.name = MODELS[common.known(kernel or "31", MODELS)]
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = 0.3
    config.data.eval_crop_fraction = 0.875
    config.epochs = 120.0
    config.ema_decay = 0.0
    common.on_gpus(config, gpus, images=64)
    return config
