"""What the branches of RepVGG contribute: B0 with other blocks (arXiv:2101.03697, section 4.2).

The recipe, hardware and time are those of configs/repvgg_imagenet.py:b0. The block follows a colon:

    python -m train.main --config configs/repvgg_ablations.py:without_1x1 --workdir out/without_1x1

Top-1 accuracy that the paper reports (Tables 6 and 7), in per cent, where it is known here:

    repvgg                 75.14   3x3 + 1x1 + identity
    without_1x1            74.79
    without_identity       73.15
    plain                  72.39   3x3 alone
    identity_without_norm  74.18
    norm_after_addition    73.52
    relu_in_branches               cannot be merged
    diracnet
    trivial                        kernel W + I
    acb                            3x3 + 1x3 + 3x1
    residual               74.56   shortcuts around pairs of layers, which merging keeps

dbb, the Diverse Branch Block of a later paper (arXiv:2103.13425), is not in these tables.
"""

from ml_collections import ConfigDict

from configs import common, repvgg_imagenet
from replk_jax.models.repvgg import BLOCKS


def get_config(block: str = "repvgg") -> ConfigDict:
    config = repvgg_imagenet.get_config("b0")
    config.model.repvgg.block = common.known(block, BLOCKS)
    return config
