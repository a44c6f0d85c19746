"""The fields of semantic segmentation.

They have mmsegmentation's values for UPerNet on ADE20K, where an experiment sets none, and those of
RepLKNet's published configurations (DingXiaoH/RepLKNet-pytorch, segmentation/configs).
"""

from ml_collections import ConfigDict, config_dict

from configs import common
from configs.common import known, on_gpus, row_and_gpus

__all__ = ["ade20k", "cityscapes", "get_config", "known", "on_gpus", "row_and_gpus", "sgd"]


def get_config() -> ConfigDict:
    """The fields of segmentation."""
    fields = common.run_fields()
    fields["data"] |= {
        # A folder of images beside masks, in a known `format`: "ade20k", "cityscapes", "voc", or
        # "folder" (None), which has images/SPLIT/NAME.jpg and masks/SPLIT/NAME.png, for example.
        # See train/data/segmentation_folders.py.
        "format": config_dict.placeholder(str),
        "image_suffix": config_dict.placeholder(str),
        "mask_suffix": config_dict.placeholder(str),
        # A file with the name of a class per line, for data without names of classes.
        "classes": config_dict.placeholder(str),
        # Whether 0 in a mask is ignored and class k has the value k + 1; None: as the format says.
        "reduce_zero_label": config_dict.placeholder(bool),
        # Training images are resized within (long, short) sides times a random factor, cropped to
        # (height, width), flipped, and distorted in their colours.
        "limits": (2048, 512),
        "ratio_range": (0.5, 2.0),
        "crop_size": (512, 512),
        # A crop is drawn again, ten times at most, while one class has this share of it or more.
        "cat_max_ratio": 0.75,
        "flip": True,
        "photometric": True,
    }
    fields |= {
        "task": "segmentation",
        # The heads on the backbone of `model`; see replk_jax.create_segmenter.
        "segmenter": {
            "head": "upernet",  # pspnet, deeplabv3, deeplabv3plus or fcn
            # Of the decode head; None is the head's own value.
            "channels": config_dict.placeholder(int),
            "pool_scales": config_dict.placeholder(tuple),
            "pool_channels": config_dict.placeholder(int),
            "dilations": config_dict.placeholder(tuple),
            "low_level_channels": config_dict.placeholder(int),
            "dropout_rate": 0.1,
            # Width of the auxiliary head, on the second-to-last feature map; None for no such head.
            "auxiliary_channels": config_dict.placeholder(int),
            # Of all bilinear resizing, in the heads and of the logits.
            "align_corners": False,
            # Of the backbone: its feature maps (None: the usual ones), whether a convolution whose
            # stride dilation replaces keeps the dilation of the stage before, the number of dilated
            # layers of a RepVGG (None: all), and the norms of a RepLKNet's stages.
            "out_indices": config_dict.placeholder(tuple),
            "contract_dilation": config_dict.placeholder(bool),
            "dilated_layers": config_dict.placeholder(int),
            "norm_intermediate_features": config_dict.placeholder(bool),
        },
        # Cross entropy of the pixels that are not ignored.
        "loss": {
            "auxiliary_weight": 0.4,
            # Whether the mean is over these pixels; otherwise over all, where ignored ones count 0.
            "avg_non_ignore": False,
            "class_weights": (),  # a factor for each class; () for 1
            # Online hard example mining, in the decode head: the number of pixels to keep per image
            # (None for all), and the probability below which all are kept (None: no others).
            "ohem_min_kept": config_dict.placeholder(int),
            "ohem_threshold": config_dict.placeholder(float),
        },
        # How images are tested: the protocol that is stored with the network, and that mode "eval"
        # uses. See replk_jax.segmentation.SegmentationProtocol.
        "test": {
            "limits": (2048, 512),  # images are resized within (long, short) sides
            "multiple": 1,  # both sides are rounded up to a multiple of it
            # Side and stride of a sliding window; None for the whole image.
            "window": config_dict.placeholder(int),
            "stride": config_dict.placeholder(int),
            "ratios": (1.0,),  # factors on the limits; predictions are averaged
            "flip": False,  # whether mirrored images are predicted too
            # Evaluations during training: "full", as above; or "whole", which is faster and
            # compiles few programs: the whole image at the first ratio, with its sides rounded up
            # to a multiple of 32. The scores of both differ a little.
            "in_training": "whole",
            "pictures": 4,  # of truth and prediction, at each evaluation
        },
    }
    config = ConfigDict(fields)
    config.segmenter.auxiliary_channels = 256
    config.ema_decay = 0.0
    config.epochs = None
    config.steps = 160_000
    config.eval_every_epochs = None
    config.eval_every_steps = 2000
    config.checkpoints.every_steps = 2000
    config.batch_size = 16
    config.eval_batch_size = 16
    config.log_every_steps = 10
    config.optimizer.schedule = "polynomial"
    config.optimizer.peak_lr = 2e-4
    config.optimizer.final_lr = 0.0
    config.optimizer.warmup_from = 1e-6
    config.optimizer.warmup_epochs = None
    config.optimizer.warmup_steps = 1500
    config.optimizer.decay_of = "except_norms"
    return config


def ade20k(config: ConfigDict, size: int = 512) -> None:
    """ADE20K's scene parsing benchmark (ADEChallengeData2016), with square crops.

    At 640 the test slides, as in the published configurations.
    """
    config.data.name = "ade20k"
    config.data.format = "ade20k"
    config.data.train_split = "training"
    config.data.eval_split = "validation"
    config.data.crop_size = (size, size)
    if size > 512:
        config.test.window = size
        config.test.stride = size * 2 // 3


def cityscapes(config: ConfigDict, crop_size: tuple[int, int]) -> None:
    """Cityscapes (leftImg8bit and gtFine)."""
    config.data.name = "cityscapes"
    config.data.format = "cityscapes"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.limits = config.test.limits = (2048, 1024)
    config.data.crop_size = crop_size


def sgd(config: ConfigDict) -> None:
    """mmsegmentation's usual SGD: momentum 0.9, polynomial decay of power 0.9, no warm-up."""
    config.optimizer.name = "sgd"
    config.optimizer.peak_lr = 0.01
    config.optimizer.power = 0.9
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_of = "all"
