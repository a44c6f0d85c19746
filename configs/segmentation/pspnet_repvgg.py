"""PSPNet with RepVGG on Cityscapes (RepVGG, arXiv:2101.03697, section 4.3).

The backbone follows a colon; the default is b1g2_fast. mIoU and pixel accuracy that the paper
reports, in per cent:

    b1g2_fast  78.88  96.19
    b1g2       78.70  96.27
    b2_fast    79.52  96.36
    b2         80.57  96.50

    python -m train.main --config configs/segmentation/pspnet_repvgg.py:b2 \\
        --workdir out/pspnet_b2 \\
        --config.data.folder=cityscapes --config.init_from=RepVGG-B2-train.pth

The paper states: polynomial decay of power 0.9 from 0.01, weight decay 1e-4, 40 epochs, 16 images
on 8 GPUs, and all else as for the ResNets of PSPNet's public code (hszhao/semseg): SGD with
momentum 0.9, ten times the rate in the heads, no warm-up, all parameters decay, crops of 713 at 0.5
to 2 times the size, flips, auxiliary loss 0.4; a test with windows of 713, stride 476, and flips.
Of the "fast" networks only the last five 3 x 3 layers are dilated; the paper does not state by how
much, 2 and 4 are a guess.

Departures from that code: no rotation and no blur; crops are padded at the right and bottom, not
around, with the mean; and the test averages the logits of overlapping windows, as mmsegmentation
does, where it averages probabilities. Neither training code nor weights of these networks were
published, and none of these runs has been made with this package. `:b2,gpus=4` accumulates the
gradient over two micro-batches.
"""

from ml_collections import ConfigDict

from configs.segmentation import common

# Width of the last stage, and number of dilated layers (None: all of the last two stages).
ROWS = {
    "b1g2": (2048, None),
    "b1g2_fast": (2048, 5),
    "b2": (2560, None),
    "b2_fast": (2560, 5),
}


def get_config(text: str = "b1g2_fast") -> ConfigDict:
    name, gpus = common.row_and_gpus(text)
    name = common.known(name or "b1g2_fast", ROWS)
    width, dilated_layers = ROWS[name]
    config = common.get_config()
    config.model.name = f"repvgg_{name.removesuffix('_fast')}"
    config.model.output_stride = 8
    config.segmenter.head = "pspnet"
    config.segmenter.pool_channels = width // 4
    config.segmenter.align_corners = True
    config.segmenter.contract_dilation = False
    config.segmenter.dilated_layers = dilated_layers
    common.cityscapes(config, (713, 713))
    config.data.cat_max_ratio = 1.0
    config.data.photometric = False
    config.test.window = 713
    config.test.stride = 476
    config.test.flip = True
    common.sgd(config)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.head_lr_factor = 10.0
    config.batch_size = 16
    config.steps = None
    config.epochs = 40.0
    common.on_gpus(config, gpus, images=2)
    return config
