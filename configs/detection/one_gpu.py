"""FCOS with RepLKNet-31B on COCO, on one GPU.

    python -m train.main --config configs/detection/one_gpu.py --workdir out/fcos_31b \\
        --config.data.folder=coco --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth

The recipe of fcos_replknet.py (AP 47.0 %) with four images a step for sixteen, and half of its
learning rate: AdamW's goes with the square root of the batch (Malladi et al., arXiv:2205.10287).
The warm-up is four times as long, so that it takes as many images. Four images are too few for
batch norms, which keep the statistics of the pre-trained network; blocks are computed again in the
backward pass, to save memory. A step says how much it takes: for less, --config.batch_size=2
--config.optimizer.peak_lr=7e-5.

It has not been run to its end. For a result in less time: --config.epochs=12
--config.optimizer.milestones='(8, 11)'.
"""

from ml_collections import ConfigDict

from configs.detection import fcos_replknet

BATCH_SIZE = 4


def get_config() -> ConfigDict:
    config = fcos_replknet.get_config()
    factor = config.batch_size // BATCH_SIZE
    config.batch_size = config.eval_batch_size = BATCH_SIZE
    config.optimizer.peak_lr /= factor**0.5
    config.optimizer.warmup_steps *= factor
    config.freeze.batch_norm = True
    config.model.remat = "full"
    return config
