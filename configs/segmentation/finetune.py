"""A segmenter for images of your own, from a RepLKNet-31B that was trained to classify: one GPU.

`DIR/images/train/NAME.jpg`, `DIR/masks/train/NAME.png`, the same for `val`, and `DIR/classes.txt`
with the name of a class per line. The masks are index PNGs: the value of a pixel is the number of
its class, counted from 0 in the order of the file; 255 is ignored. Look through them first:

    python -m train.check --config configs/segmentation/finetune.py --config.data.folder=DIR
    python -m train.main --config configs/segmentation/finetune.py --workdir out/finetune \\
        --config.data.folder=DIR --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth
    python -m replk_jax segment photo.jpg --weights out/finetune/checkpoints/STEP --output out/masks

The backbone starts from the checkpoint and the heads from random weights; from a segmenter's
checkpoint the heads start too, except the layers of the classes if these differ in number. The
learning rate is half that of the paper's runs on ADE20K and falls towards the image, by 0.9 from
layer to layer; crops, loss and warm-up are like theirs, for 50 epochs of 8 images a step. These
values were chosen here.

Images should be larger than a crop when resized: of those within 2048 x 512, crops of 512 x 512.
For larger images: --config.data.limits='(2048, 1024)' --config.test.limits='(2048, 1024)'.
"""

from ml_collections import ConfigDict

from configs.segmentation import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.init_reset_head = True
    config.model.name = "replknet_31b"
    config.model.dtype = "bfloat16"
    config.model.replknet.drop_path_rate = 0.3
    config.data.eval_split = "val"
    config.batch_size = 8
    config.eval_batch_size = 8
    config.steps = None
    config.epochs = 50.0
    config.eval_every_steps = None
    config.eval_every_epochs = 5.0
    config.optimizer.peak_lr = 1e-4
    config.optimizer.layer_decay = 0.9
    config.optimizer.warmup_steps = None
    config.optimizer.warmup_epochs = 1.0
    return config
