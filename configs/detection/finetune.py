"""Fine-tunes a classifier's backbone for detection of objects of your own, on one GPU.

    python -m train.check --config configs/detection/finetune.py --config.data.folder=DIR
    python -m train.main --config configs/detection/finetune.py --workdir out/finetune \\
        --config.data.folder=DIR --config.init_from=RepLKNet-31B_ImageNet-1K_224.pth
    python -m replk_jax detect photo.jpg --weights out/finetune/checkpoints/STEP --output out/found

DIR has the images in `train` and `val`, and annotations in COCO's form in
`annotations/instances_train.json` and `instances_val.json`; see docs/detection.md for others. The
backbone starts from the checkpoint, and the pyramid and the head from random weights; from a
detector's checkpoint these start too, except the layers of the classes if these differ in number.
Epochs, batch and learning rate are for a thousand images or more; these values were chosen here.

`:cascade_mask_rcnn` learns masks too, if the annotations have them. Large images take memory:
--config.data.scales='((1024, 640),)' --config.test.limits='(1024, 640)' for less.
"""

from ml_collections import ConfigDict

from configs.detection import common, one_gpu

DETECTORS = ("fcos", "cascade_mask_rcnn")


def get_config(detector: str = "fcos") -> ConfigDict:
    config = one_gpu.get_config()
    config.detector.name = common.known(detector, DETECTORS)
    config.data.masks = detector == "cascade_mask_rcnn"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.init_reset_head = True
    config.model.replknet.drop_path_rate = 0.3
    config.optimizer.warmup_steps = 500
    return config
