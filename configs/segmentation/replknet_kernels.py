"""UPerNet with RepLKNet with kernels of 3 to 31 on ADE20K (arXiv:2203.06717, Table 5).

The largest kernel of the network follows a colon; the default is 31:

    python -m train.main --config configs/segmentation/replknet_kernels.py:13 \\
        --workdir out/ade20k_13 --config.data.folder=ADEChallengeData2016 \\
        --config.init_from=out/replknet_13/checkpoints/STEP

mIoU at a single scale that the paper reports, in per cent, of backbones that were trained for 120
epochs (configs/replknet_kernels.py):

    3   3-3-3-3       46.05
    7   7-7-7-7       48.05
    13  13-13-13-13   48.35
    25  25-25-25-13   48.68
    31  31-29-27-13   49.17

The paper names mmsegmentation's setting of 80,000 iterations, and drop path 0.3 for the backbones
(its appendix). Optimizer, batch and drop path of these runs are not stated. Chosen here: those of
the published configurations (upernet_replknet.py), which call 80,000 iterations a schedule of 16
images; drop path 0.3; and a warm-up of 1 % of the steps. Convolutions are computed in bfloat16.

A batch norm sees all 16 images, on any number of GPUs that take the batch at once. Where a GPU
takes 2 at a time, `:13,gpus=4` accumulates the gradient over two micro-batches of 8; a batch norm
sees one of these.
"""

from ml_collections import ConfigDict

from configs.replknet_kernels import MODELS
from configs.segmentation import common


def get_config(text: str = "31") -> ConfigDict:
    kernel, gpus = common.row_and_gpus(text)
    config = common.get_config()
    config.model.name = MODELS[common.known(kernel or "31", MODELS)]
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = 0.3
    common.ade20k(config)
    config.batch_size = 16
    config.steps = 80_000
    config.optimizer.warmup_steps = 800
    common.on_gpus(config, gpus, images=2)
    return config
