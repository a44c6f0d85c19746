"""Does a small kernel beside a large one help? The paper's guideline 3 in minutes, on a laptop.

A small RepLKNet of 13 x 13 kernels, `with` parallel 5 x 5 ones or `without`, on the patches of
photographs (train/data/photographs.py), with random crops and flips alone. Several seeds show
whether a difference is chance:

    for row in with without; do for seed in 0 1 2; do
      python -m train.main --config configs/guideline3.py:$row --workdir out/$row-$seed \\
        --config.seed=$seed
    done; done

A run takes 90 seconds on two cores. Accuracy on the 1,080 test patches in per cent, and training
loss over the last 20 steps, for seeds 0, 1 and 2; then mean and standard deviation:

    with     86.02  90.28  88.33   88.21 +- 2.13    0.723  0.729  0.736   0.730 +- 0.007
    without  87.78  86.76  89.44   87.99 +- 1.36    0.720  0.727  0.724   0.724 +- 0.004

The means differ by less than the standard deviations: three seeds of so short a run do not show
whether the small kernel helps.

The values were chosen here, to train within minutes. They are not from a paper.
"""

from ml_collections import ConfigDict

from configs import common

SMALL_KERNELS = {"with": 5, "without": 0}


def get_config(row: str = "with") -> ConfigDict:
    config = common.get_config()
    common.without_augmentation(config)
    config.model.replknet.kernel_sizes = (13, 13)
    config.model.replknet.layers = (1, 1)
    config.model.replknet.channels = (32, 64)
    config.model.replknet.small_kernel = SMALL_KERNELS[common.known(row, SMALL_KERNELS)]
    config.data.name = "photographs"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.crop_scale = (0.35, 1.0)
    config.batch_size = 64
    config.eval_batch_size = 120
    config.epochs = 10.0
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_epochs = 1.0
    config.log_every_steps = 50
    config.eval_every_epochs = 5.0
    return config
