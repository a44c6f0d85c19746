"""UPerNet with RepLKNet-31B on ADE20K, on one GPU.

    python -m train.main --config configs/segmentation/one_gpu.py --workdir out/31b_ade20k \\
        --config.data.folder=ADEChallengeData2016 \\
        --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth

The recipe of 31b_ade20k in upernet_replknet.py (mIoU 49.9 %), with its schedule scaled as its
authors advise: the learning rate stays, and the number of steps times the batch too. 40,000 steps
of 128 images become 320,000 of 16, with 3,200 steps of warm-up. Nothing is accumulated, so a batch
norm sees 16 images, as in most of mmsegmentation's runs. For another batch, N times as large,
divide config.steps, config.optimizer.warmup_steps and config.eval_every_steps by N.

It has not been run to its end. For a result in a day: --config.steps=40000
--config.optimizer.warmup_steps=400 see an eighth of the images, about 32 epochs.
"""

from ml_collections import ConfigDict

from configs.segmentation import upernet_replknet

BATCH_SIZE = 16


def get_config() -> ConfigDict:
    config = upernet_replknet.get_config("31b_ade20k")
    factor = config.batch_size // BATCH_SIZE
    config.batch_size = BATCH_SIZE
    config.steps *= factor
    config.optimizer.warmup_steps *= factor
    config.eval_every_steps *= factor
    return config
