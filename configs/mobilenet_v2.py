"""MobileNet V2 with large kernels on ImageNet-1K for 100 epochs (arXiv:2203.06717, section 3).

The row of the paper's tables follows a colon:

    python -m train.main --config configs/mobilenet_v2.py:table3_13x13_reparam --workdir out/13x13

Top-1 accuracy that the paper reports, in per cent:

    table2_3x3                71.76   Table 2: large kernels need shortcuts
    table2_13x13              72.53
    table2_3x3_no_shortcuts   68.67
    table2_13x13_no_shortcuts 53.98
    table3_9x9                72.67   Table 3: and a parallel 3x3 kernel helps them
    table3_9x9_reparam        73.09
    table3_13x13              72.53
    table3_13x13_reparam      73.24
    table4_3x3                71.76   Table 4: large kernels in the last stage only
    table4_7x7                72.00
    table4_13x13              71.97
    table11_dilation_4        57.23   Table 11 (first arXiv version): dilation instead of size
    table11_dilation_6        51.21

A network that is in two tables is the same run in both. Appendix A of the paper: 8 GPUs with 32
images each, SGD with momentum 0.9, weight decay 4e-5, learning rate 0.1 with 5 epochs of warm-up
and a cosine, 100 epochs, random crops and flips only. All parameters decay, as with PyTorch's SGD:
the paper names no exception. Bilinear resizing, the cosine's end at 0 and the crop for evaluation
are the usual ones of PyTorch, chosen here. The time of a run has not been measured. 100 epochs of
table3_13x13_reparam are 5.3e17 floating-point operations, so few that the host may be the
bottleneck: it prepares the images in some 40 core hours.
"""

from ml_collections import ConfigDict

from configs import common

MODELS = {
    "table2_3x3": "mobilenet_v2",
    "table2_13x13": "mobilenet_v2_13",
    "table2_3x3_no_shortcuts": "mobilenet_v2_no_shortcuts",
    "table2_13x13_no_shortcuts": "mobilenet_v2_13_no_shortcuts",
    "table3_9x9": "mobilenet_v2_9",
    "table3_9x9_reparam": "mobilenet_v2_9_reparam",
    "table3_13x13": "mobilenet_v2_13",
    "table3_13x13_reparam": "mobilenet_v2_13_reparam",
    "table4_3x3": "mobilenet_v2",
    "table4_7x7": "mobilenet_v2_last_7",
    "table4_13x13": "mobilenet_v2_last_13",
    "table11_dilation_4": "mobilenet_v2_dilated_4",
    "table11_dilation_6": "mobilenet_v2_dilated_6",
}


def get_config(row: str = "table2_3x3") -> ConfigDict:
    config = common.sgd_on_imagenet()
    config.model.name = MODELS[common.known(row, MODELS)]
    config.epochs = 100.0
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay_of = "all"
    return config
