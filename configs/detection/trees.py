"""Trees in aerial photographs: an example of a data set of one's own, in minutes.

`examples/trees.py` makes the data set from the photographs in DeepForest's wheel, and says where
they are from:

    python -m pip download --no-deps deepforest==2.1.0
    python examples/trees.py deepforest-*.whl out/trees-data
    python -m train.check --config configs/detection/trees.py
    python -m train.main --config configs/detection/trees.py --workdir out/trees

The network is that of scattered_digits.py. The values were chosen here.
"""

from ml_collections import ConfigDict

from configs.detection import scattered_digits


def get_config() -> ConfigDict:
    config = scattered_digits.get_config()
    config.data.folder = "out/trees-data"
    config.data.eval_split = "val"
    config.data.scales = ((128, 128), (160, 160))
    config.data.buckets = ((160, 160),)
    config.data.flip = True
    config.data.max_objects = 32  # a tile has up to 19
    config.test.limits = (160, 160)
    config.test.buckets = ()
    config.eval_batch_size = 10
    config.epochs = 6.0
    config.eval_every_epochs = 2.0
    config.optimizer.warmup_steps = 50
    return config
