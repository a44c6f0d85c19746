"""The experiments of detection: every row of every file, against the published recipes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import configs.detection
import replk_jax
from configs.detection import (
    cascade_mask_rcnn_replknet,
    common,
    finetune,
    one_gpu,
    scattered_digits,
)
from replk_jax.detection.registry import KINDS
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from tests.train import tiny_detection
from train.data.detection_draws import DetectionAugmentation
from train.engine import config as configuration
from train.engine.optimizer import decayed
from train.errors import RunError
from train.tasks import find_task
from train.tasks.detection_config import (
    _OF_BACKBONE,
    build_augmentation,
    build_detector,
    build_protocol,
    evaluation_buckets,
    training_buckets,
)

PLAIN = ["common", "fcos_replknet", "one_gpu", "trees"]
ROWS = {
    "cascade_mask_rcnn_replknet": list(cascade_mask_rcnn_replknet.ROWS),
    "scattered_digits": list(scattered_digits.DETECTORS),
    "finetune": list(finetune.DETECTORS),
}
ALL = [(file, ()) for file in (*PLAIN, *ROWS)] + [
    (file, (row,)) for file, rows in ROWS.items() for row in rows
]
# recipes.md, A5.
SHORT_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def load(file, row=()):
    return importlib.import_module(f"configs.detection.{file}").get_config(*row)


def test_every_file_is_here():
    files = {path.stem for path in Path(configs.detection.__file__).parent.glob("*.py")}
    assert files - {"__init__", "data", "network"} == {*PLAIN, *ROWS}


def test_every_field_of_a_detector_can_be_set():
    """By its name in `create_detector`."""
    fields = set(common.get_config().detector) - {"name", *_OF_BACKBONE}
    assert fields == {field for kind in KINDS.values() for field in kind.part_fields()}


TWO_STAGES = {
    "detector.rpn_train_pre_nms": 300, "detector.rpn_test_post_nms": 50,
    "detector.rpn_positive_threshold": 0.6, "detector.rpn_anchor_ratios": (0.5, 2.0),
    "detector.box_loss": "l1", "detector.sample_count": 64, "detector.mask_convs": 2,
}  # fmt: skip


def test_fields_reach_the_heads():
    config = load("cascade_mask_rcnn_replknet")
    config.update_from_flattened_dict(TWO_STAGES)
    find_task(config).check(config)
    network = build_detector(config, 3)
    rpn, roi = network.rpn_head, network.roi_head
    assert (rpn.train_pre_nms, rpn.test_post_nms, rpn.positive_threshold) == (300, 50, 0.6)
    assert (rpn.anchor_ratios, roi.box_loss) == ((0.5, 2.0), "l1")
    assert (roi.sample_count, roi.mask_convs) == (64, 2)
    config.detector.num_groups = 4
    with pytest.raises(RunError, match=r"config\.detector: Unknown field num_groups"):
        build_detector(config, 3)


@pytest.mark.parametrize(("file", "row"), ALL, ids=lambda value: "".join(value))
def test_every_row_makes_sense(file, row):
    config = load(file, row)
    configuration.check(config)
    find_task(config).check(config)
    assert build_detector(config, 21).num_classes == 21
    assert "augmentation" not in config


# The names of replk_jax.list_detectors().
NAMED = {
    ("fcos_replknet", ""): "fcos_replknet_31b_coco",
    ("cascade_mask_rcnn_replknet", "31b"): "cascade_mask_rcnn_replknet_31b_coco",
    ("cascade_mask_rcnn_replknet", "31b_22k"): "cascade_mask_rcnn_replknet_31b_coco",
    ("cascade_mask_rcnn_replknet", "31l_22k"): "cascade_mask_rcnn_replknet_31l_coco",
    ("cascade_mask_rcnn_replknet", "xl"): "cascade_mask_rcnn_replknet_xl_coco",
}


@pytest.mark.parametrize(("file", "row"), NAMED)
def test_networks_are_the_named_ones(file, row):
    config = load(file, (row,))
    named = replk_jax.create_detector(
        NAMED[file, row],
        backbone_options={"drop_path_rate": config.model.replknet.drop_path_rate},
        dtype=config.model.dtype,
    )
    assert build_detector(config, 80) == named


def of_all(config):
    """What recipes.md, A4 and A5, says of all runs."""
    recipe, test = config.optimizer, config.test
    assert (recipe.name, recipe.weight_decay, recipe.decay_of) == ("adamw", 0.05, "except_norms")
    assert (recipe.b1, recipe.b2, recipe.eps, recipe.layer_decay) == (0.9, 0.999, 1e-8, 1)
    assert (recipe.schedule, recipe.milestone_factor, recipe.warmup_steps) == ("step", 0.1, 500)
    assert (config.ema_decay, config.eval_every_epochs, config.log_every_steps) == (0, 1, 50)
    assert (test.limits, test.pad_multiple) == ((1333, 800), 32)
    assert (config.data.flip, config.data.filter_empty) == (True, True)
    assert (config.data.train_split, config.data.eval_split) == ("train2017", "val2017")


def test_the_recipe_of_fcos():
    """recipes.md, A4 to A6."""
    config = load("fcos_replknet")
    of_all(config)
    recipe = config.optimizer
    assert (recipe.peak_lr, config.epochs, recipe.milestones) == (2e-4, 24, (16, 22))
    assert (recipe.warmup, recipe.warmup_from, recipe.clip_norm) == ("constant", 1 / 3, 35)
    assert config.model.replknet.drop_path_rate == 0.5
    assert (config.freeze.stages, config.freeze.batch_norm) == (-1, False)
    assert build_augmentation(config.data) == DetectionAugmentation(((1333, 640), (1333, 800)))
    assert not config.data.masks
    assert config.data.mean == (0.485, 0.456, 0.406)
    head = build_detector(config, 80).bbox_head
    assert (head.candidates_per_level, head.score_threshold) == (1000, 0.05)
    assert (head.nms_threshold, head.max_detections) == (0.5, 100)
    for gpus in (1, 2, 4, 8):
        config = load("fcos_replknet", (f"gpus={gpus}",))
        assert (config.batch_size, config.batch_size // config.accumulation) == (16, 2 * gpus)


# recipes.md, A4: drop path, images per GPU.
CASCADE = {"31b": (0.6, 1), "31b_22k": (0.4, 1), "31l_22k": (0.7, 1), "xl": (0.5, 4)}


@pytest.mark.parametrize("row", CASCADE)
def test_the_recipes_of_cascade_mask_rcnn(row):
    """recipes.md, A4 and A5."""
    config = load("cascade_mask_rcnn_replknet", (row,))
    of_all(config)
    recipe = config.optimizer
    drop_path_rate, images = CASCADE[row]
    assert (recipe.peak_lr, config.epochs, recipe.milestones) == (4e-4, 36, (27, 33))
    assert (recipe.warmup, recipe.warmup_from, recipe.clip_norm) == ("linear", 1e-3, None)
    assert config.model.replknet.drop_path_rate == drop_path_rate
    assert (config.freeze.stages, config.freeze.batch_norm) == (-1, False)
    augmentation = build_augmentation(config.data)
    assert augmentation.scales == tuple((1333, side) for side in SHORT_SIDES)
    assert augmentation.crop_scales == tuple((1333, side) for side in (400, 500, 600))
    assert augmentation.crop_sizes == (384, 600)
    assert augmentation.flips_first
    assert config.data.masks
    mean_std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if row == "xl":
        mean_std = ((0.5,) * 3,) * 2
    assert (config.data.mean, config.data.std) == mean_std
    protocol = build_protocol(config)
    assert (protocol.mean, protocol.std) == mean_std
    for gpus in (1, 8, 16):
        config = load("cascade_mask_rcnn_replknet", (f"{row},gpus={gpus}",))
        micro_batch = config.batch_size // config.accumulation
        assert (config.batch_size, micro_batch, config.eval_batch_size) == (
            64, images * gpus, images * gpus
        )  # fmt: skip


def test_the_schedule_of_one_gpu():
    one, many = one_gpu.get_config(), load("fcos_replknet")
    assert (one.epochs, one.optimizer.milestones) == (many.epochs, many.optimizer.milestones)
    for config in (one, many):
        assert config.optimizer.warmup_steps * config.batch_size == 8000
    assert one.optimizer.peak_lr / many.optimizer.peak_lr == (one.batch_size / 16) ** 0.5 == 0.5
    assert (one.batch_size, one.accumulation, one.eval_batch_size) == (4, 1, 4)
    assert (one.freeze.batch_norm, one.model.remat) == (True, "full")


@reference_data.required
@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("cascade_36_epochs", "cascade_mask_rcnn_replknet"),
        ("fcos_24_epochs", "fcos_replknet"),
    ],
)
def test_learning_rates_of_mmdetection(case, file):
    """README: 1e-5 in float32."""
    path = reference_data.ROOT / "downstream/transforms/learning_rates.json"
    expected = json.loads(path.read_text())[case]
    steps, rates = np.array(expected["rates"]).T
    config = load(file)
    length = configuration.run_length(config, steps_per_epoch=expected["epoch_length"])
    schedule = configuration.build_schedule(config.optimizer, length)
    np.testing.assert_allclose(schedule(steps.astype(int)), rates, rtol=1e-5)


def test_norms_do_not_decay():
    """README, "Training rules": biases of convolutions and the scales of FCOS do."""
    config = tiny_detection.get_config()
    params = abstract_variables(build_detector(config, 3))["params"]
    mask = decayed(params, config.optimizer.decay_of)
    head = mask["bbox_head"]
    assert head["conv_cls"] == {"kernel": True, "bias": True}
    assert head["scales_0"] == {"scale": True}
    assert head["cls_convs_0"]["gn"] == {"scale": False, "bias": False}
    assert mask["neck"]["fpn_convs_0"]["conv"] == {"kernel": True, "bias": True}
    assert not any(mask["backbone"]["stem_0"]["bn"].values())


def test_buckets():
    """Two, that hold all wide and all high images, or those of the configuration."""
    config = load("fcos_replknet")
    protocol = build_protocol(config)
    assert training_buckets(config) == ((800, 1344), (1344, 800))
    assert evaluation_buckets(config, protocol) == ((800, 1344), (1344, 800))
    config.data.buckets = config.test.buckets = ((1344, 1344),)
    assert training_buckets(config) == evaluation_buckets(config, protocol) == ((1344, 1344),)
    config.test.exact_padding = True
    assert evaluation_buckets(config, protocol) == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.scales": ()}, r"config\.data\.scales must be pairs \(long, short\)"),
        ({"data.scales": ((640, 1333),)}, r"config\.data\.scales must be"),
        ({"data.scales": ((1333, 640.5),)}, r"config\.data\.scales must be"),
        ({"data.crop_scales": ((400,),)}, r"config\.data\.crop_scales must be"),
        ({"data.crop_sizes": (600, 384)}, r"config\.data\.crop_sizes must be"),
        ({"data.buckets": (800, 1344)}, r"config\.data\.buckets must be pairs \(height, width\)"),
        ({"test.buckets": ((0, 1344),)}, r"config\.test\.buckets must be"),
        ({"data.policy": "mosaic"}, r"config\.data\.policy must be resize or crop"),
        ({"data.policy": "crop", "data.crop_scales": ()}, "needs config.data.crop_scales"),
        ({"data.max_objects": 0}, r"config\.data\.max_objects must be at least 1"),
        ({"data.std": (1.0, 0.0, 1.0)}, r"config\.data\.std must be"),
        ({"detector.score_threshold": 1.5}, r"config\.detector\.score_threshold must be"),
        ({"detector.nms_threshold": -0.1}, r"config\.detector\.nms_threshold must be"),
        ({"detector.max_detections": 0}, r"config\.detector\.max_detections must be"),
        ({"detector.rpn_train_post_nms": 0}, r"config\.detector\.rpn_train_post_nms must be at"),
        ({"detector.rpn_anchor_scale": 0.0}, r"config\.detector\.rpn_anchor_scale must be more"),
        ({"detector.rpn_anchor_ratios": (1, 0)}, r"config\.detector\.rpn_anchor_ratios must be"),
        ({"detector.regression_limits": ("64",)}, r"config\.detector\.regression_limits must be"),
        ({"detector.sampling_ratio": -1}, r"config\.detector\.sampling_ratio must be 0 or more"),
        ({"test.library": "coco"}, r"config\.test\.library must be faster_coco_eval or pycocoto"),
        ({"test.pictures": -1}, r"config\.test\.pictures must be"),
        ({"test.pad_multiple": 0}, r"config\.test: pad_multiple"),
    ],
)
def test_values_that_make_no_sense(fields, message):
    config = common.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(RunError, match=message):
        find_task(config).check(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"detector.name": "yolo"}, "config.detector: Unknown detection network 'yolo'"),
        ({"model.name": "replknet_31c"}, "Unknown model 'replknet_31c'"),
        ({"model.in_channels": 1}, "Detection has colour images"),
        ({"detector.channels": 30}, "config.detector: .*num_groups"),
        ({"detector.neck_channels": 0}, "channels"),
    ],
)
def test_networks_that_cannot_be_built(fields, message):
    config = tiny_detection.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(RunError, match=message):
        build_detector(config, 3)
