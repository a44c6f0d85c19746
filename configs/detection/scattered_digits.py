"""A detector on a laptop: where are handwritten digits, and which are they? No network needed.

Digits in random sizes and colours, overlapping, on patches of photographs: 1,500 images to train
on, and 300 of other digits on other photographs to test on (train/data/scattered_digits.py). FCOS
on a small RepLKNet with kernels of 13 x 13, or `:cascade_mask_rcnn`, which finds masks too.

    python -m train.main --config configs/detection/scattered_digits.py \\
        --workdir out/detected_digits
    python -m replk_jax detect photo.png --weights out/detected_digits/checkpoints/STEP \\
        --output out/found

Images are resized to three quarters, so that digits are 15 to 50 pixels high: the pyramid begins at
a stride of 8, or of 4 for masks.

The values were chosen here, to train within minutes. They are not from a paper.
"""

from ml_collections import ConfigDict

from configs.detection import common


def _fcos(config: ConfigDict) -> None:
    detector = config.detector
    detector.name = "fcos"
    detector.neck_start_level = 1  # at a stride of 8
    detector.neck_num_outputs = 2
    detector.channels = 48
    detector.num_convs = 2
    detector.num_groups = 8
    detector.regression_limits = (32.0,)  # almost all digits are found at the stride of 8
    detector.norm_on_bbox = True
    detector.center_sampling = True


def _cascade_mask_rcnn(config: ConfigDict) -> None:
    config.data.masks = True
    detector = config.detector
    detector.name = "cascade_mask_rcnn"
    detector.neck_num_outputs = 3
    detector.rpn_channels = 48
    detector.rpn_anchor_scale = 6.0  # squares of 24, 48 and 96 pixels
    detector.rpn_train_pre_nms = detector.rpn_test_pre_nms = 200
    detector.rpn_train_post_nms = detector.rpn_test_post_nms = 50
    detector.box_convs = 0
    detector.box_fcs = 1
    detector.box_fc_channels = 128
    detector.mask_convs = 1
    detector.mask_channels = 32
    detector.sampling_ratio = 2
    detector.sample_count = 32


DETECTORS = {"fcos": _fcos, "cascade_mask_rcnn": _cascade_mask_rcnn}


def get_config(detector: str = "fcos") -> ConfigDict:
    config = common.get_config()
    config.model.replknet.kernel_sizes = (13, 13, 7)
    config.model.replknet.small_kernel = 3
    config.model.replknet.layers = (1, 2, 2)
    config.model.replknet.channels = (32, 64, 128)
    config.detector.neck_channels = 48
    DETECTORS[common.known(detector, DETECTORS)](config)
    config.data.name = "scattered_digits"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.scales = ((96, 72),)
    config.data.flip = False  # a mirrored digit is none
    config.data.buckets = config.test.buckets = ((96, 96),)
    config.data.max_objects = 6
    config.test.limits = (96, 72)
    config.batch_size = 8
    config.eval_batch_size = 50
    config.epochs = 10.0
    config.eval_every_epochs = 5.0
    config.optimizer.schedule = "cosine"
    config.optimizer.peak_lr = 1e-2
    config.optimizer.b2 = 0.95  # with 0.999, digits are recognised later
    config.optimizer.warmup_steps = 100
    config.log_every_steps = 50
    config.checkpoints.every_steps = 500
    return config
