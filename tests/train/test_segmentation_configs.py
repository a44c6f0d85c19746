"""The experiments of segmentation: every row of every file, against the published recipes."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import configs.segmentation
import replk_jax
from configs.segmentation import common, deeplab_mobilenet_v2, one_gpu, upernet_replknet
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from train.engine import config as configuration
from train.engine.optimizer import decayed, layer_lr_factor
from train.errors import RunError
from train.tasks import find_task
from train.tasks.segmentation_config import build_protocol, build_segmenter, training_protocol

PLAIN = ["common", "finetune", "nuclei", "one_gpu"]
ROWS = {
    "upernet_replknet": list(upernet_replknet.ROWS),
    "replknet_kernels": ["3", "7", "13", "25", "31"],
    "pspnet_repvgg": ["b1g2", "b1g2_fast", "b2", "b2_fast"],
    "deeplab_mobilenet_v2": list(deeplab_mobilenet_v2.MODELS),
    "scattered_digits": ["13", "3"],
}
ALL = [(file, ()) for file in (*PLAIN, *ROWS)] + [
    (file, (row,)) for file, rows in ROWS.items() for row in rows
]


def load(file, row=()):
    return importlib.import_module(f"configs.segmentation.{file}").get_config(*row)


def test_every_file_is_here():
    files = {path.stem for path in Path(configs.segmentation.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == {*PLAIN, *ROWS}


@pytest.mark.parametrize(("file", "row"), ALL, ids=lambda value: "".join(value))
def test_every_row_makes_sense(file, row):
    config = load(file, row)
    configuration.check(config)
    find_task(config).check(config)
    assert build_segmenter(config, 21).num_classes == 21
    assert "augmentation" not in config
    assert "label_smoothing" not in config


# The names of replk_jax.list_segmenters().
NAMED = {
    ("upernet_replknet", "31b_ade20k"): "upernet_replknet_31b_ade20k",
    ("upernet_replknet", "31b_22k_ade20k"): "upernet_replknet_31b_ade20k",
    ("upernet_replknet", "31b_cityscapes"): "upernet_replknet_31b_cityscapes",
    ("upernet_replknet", "31l_22k_ade20k"): "upernet_replknet_31l_ade20k",
    ("upernet_replknet", "xl_ade20k"): "upernet_replknet_xl_ade20k",
    **{("pspnet_repvgg", row): f"pspnet_repvgg_{row}_cityscapes" for row in ROWS["pspnet_repvgg"]},
    ("deeplab_mobilenet_v2", "table3_9x9_reparam"): (
        "deeplabv3plus_mobilenet_v2_9_reparam_cityscapes"
    ),
    ("deeplab_mobilenet_v2", "table4_13x13,deeplabv3"): (
        "deeplabv3_mobilenet_v2_last_13_cityscapes"
    ),
}


@pytest.mark.parametrize(("file", "row"), NAMED)
def test_networks_are_the_named_ones(file, row):
    config = load(file, (row,))
    options = {}
    if file == "upernet_replknet":
        options = {"drop_path_rate": config.model.replknet.drop_path_rate}
    named = replk_jax.create_segmenter(
        NAMED[file, row], backbone_options=options, dtype=config.model.dtype
    )
    assert build_segmenter(config, named.num_classes) == named


# recipes.md, A1: crop, limits, drop path, batch, steps, warm-up, window, align_corners.
ADE, CITY = (2048, 512), (2049, 1025)
RECIPES = {
    "31b_ade20k": (512, ADE, 0.5, 128, 40_000, 400, None, False),
    "31b_cityscapes": (769, CITY, 0.5, 64, 20_000, 400, None, True),
    "31b_22k_ade20k": (640, ADE, 0.3, 128, 40_000, 400, 640, False),
    "31l_22k_ade20k": (640, ADE, 0.3, 64, 80_000, 800, 640, False),
    "xl_ade20k": (640, ADE, 0.5, 32, 160_000, 1500, 640, False),
}


@pytest.mark.parametrize("row", RECIPES)
def test_the_recipes_of_replknet(row):
    config = load("upernet_replknet", (row,))
    data, recipe, test = config.data, config.optimizer, config.test
    crop, *expected = RECIPES[row]
    assert data.crop_size == (crop, crop)
    assert expected == [
        data.limits, config.model.replknet.drop_path_rate, config.batch_size, config.steps,
        recipe.warmup_steps, test.window, config.segmenter.align_corners,
    ]  # fmt: skip
    assert test.stride == (426 if test.window else None)
    assert (test.limits, test.ratios, test.flip, test.multiple) == (data.limits, (1,), False, 1)
    assert (recipe.name, recipe.peak_lr, recipe.final_lr, recipe.power) == ("adamw", 2e-4, 0, 1)
    assert (recipe.schedule, recipe.warmup, recipe.warmup_from) == ("polynomial", "linear", 1e-6)
    assert (recipe.weight_decay, recipe.decay_of, recipe.clip_norm) == (0.05, "except_norms", None)
    assert (recipe.b1, recipe.b2, recipe.eps, recipe.layer_decay) == (0.9, 0.999, 1e-8, 1)
    assert (data.ratio_range, data.cat_max_ratio) == ((0.5, 2), 0.75)
    assert (data.flip, data.photometric) == (True, True)
    assert (config.eval_every_steps, config.log_every_steps) == (2000, 10)
    assert config.checkpoints.every_steps == 2000
    assert (config.ema_decay, config.freeze.stages, config.freeze.batch_norm) == (0, -1, False)
    loss = config.loss
    assert (loss.auxiliary_weight, loss.avg_non_ignore, loss.ohem_min_kept) == (0.4, False, None)
    assert (config.segmenter.dropout_rate, config.segmenter.auxiliary_channels) == (0.1, 256)
    mean_std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if row.startswith("xl"):
        mean_std = ((0.5,) * 3,) * 2
    assert (data.mean, data.std) == mean_std
    on_eight = load("upernet_replknet", (f"{row},gpus=8",))
    assert on_eight.accumulation == 1
    assert load("upernet_replknet", (f"{row},gpus=1",)).accumulation == 8


def test_the_schedule_of_one_gpu():
    one, many = one_gpu.get_config(), load("upernet_replknet")
    assert one.steps * one.batch_size == many.steps * many.batch_size
    assert one.optimizer.warmup_steps / one.steps == many.optimizer.warmup_steps / many.steps
    assert one.optimizer.peak_lr == many.optimizer.peak_lr
    assert (one.batch_size, one.accumulation) == (16, 1)


def test_the_recipes_of_sgd():
    """recipes.md, B1 and B2."""
    pspnet, deeplab = load("pspnet_repvgg", ("b2",)), load("deeplab_mobilenet_v2")
    for config, decay, final, batch in [(pspnet, 1e-4, 0, 16), (deeplab, 5e-4, 1e-4, 8)]:
        recipe = config.optimizer
        assert (recipe.name, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, False)
        assert (recipe.peak_lr, recipe.power, recipe.final_lr) == (0.01, 0.9, final)
        assert (recipe.weight_decay, recipe.decay_of, recipe.warmup_steps) == (decay, "all", 0)
        assert config.batch_size == batch
    assert (pspnet.epochs, deeplab.steps) == (40, 80_000)
    assert (pspnet.optimizer.head_lr_factor, deeplab.optimizer.head_lr_factor) == (10, 1)
    assert (pspnet.data.crop_size, deeplab.data.crop_size) == ((713, 713), (512, 1024))
    assert (pspnet.test.window, pspnet.test.stride, pspnet.test.flip) == (713, 476, True)
    assert (deeplab.test.window, deeplab.test.flip, deeplab.test.multiple) == (None, False, 1)
    for config in (pspnet, deeplab):
        assert config.data.limits == config.test.limits == (2048, 1024)
        assert (config.data.ratio_range, config.data.flip) == ((0.5, 2), True)
        assert (config.test.ratios, config.loss.auxiliary_weight) == ((1,), 0.4)
        assert (config.segmenter.auxiliary_channels, config.segmenter.dropout_rate) == (256, 0.1)
        assert config.model.output_stride == 8
    # semseg has no limit on one class and no distortion of colours; A2 has both.
    assert (pspnet.data.cat_max_ratio, pspnet.data.photometric) == (1, False)
    assert (deeplab.data.cat_max_ratio, deeplab.data.photometric) == (0.75, True)
    assert (pspnet.segmenter.align_corners, deeplab.segmenter.align_corners) == (True, False)
    heads = {}
    for row in ROWS["pspnet_repvgg"]:
        config = load("pspnet_repvgg", (row,))
        heads[row] = config.segmenter.pool_channels, config.segmenter.dilated_layers
    assert heads == {
        "b1g2": (512, None), "b1g2_fast": (512, 5), "b2": (640, None), "b2_fast": (640, 5)
    }  # fmt: skip
    head = build_segmenter(deeplab, 19).decode_head
    assert (head.channels, head.dilations, head.low_level_channels) == (512, (1, 12, 24, 36), 48)
    network = build_segmenter(deeplab, 19)
    # Stride, dilation of the first block and of the others of each stage.
    samplings = [s[:3] for s in network.backbone.stage_samplings()]
    assert [s[0] for s in samplings] == [1, 2, 2, 1, 1, 1, 1]
    assert [s[1] for s in samplings] == [s[2] for s in samplings] == [1, 1, 1, 2, 2, 4, 4]
    assert network.backbone.out_indices == (1, 2, 4, 6)


@pytest.mark.parametrize("kernel", ROWS["replknet_kernels"])
def test_the_recipe_of_table_5(kernel):
    """recipes.md, B3; the optimizer is that of A1."""
    config, published = load("replknet_kernels", (kernel,)), load("upernet_replknet")
    assert (config.data.crop_size, config.steps, config.batch_size) == ((512, 512), 80_000, 16)
    assert config.model.replknet.drop_path_rate == 0.3
    assert (config.test.window, config.test.limits, config.test.ratios) == (None, ADE, (1,))
    optimizer = {**published.optimizer, "warmup_steps": 800}
    assert dict(config.optimizer) == optimizer
    assert build_segmenter(config, 150).backbone.architecture.kernel_sizes == {
        "3": (3, 3, 3, 3), "7": (7, 7, 7, 7), "13": (13, 13, 13, 13), "25": (25, 25, 25, 13),
        "31": (31, 29, 27, 13),
    }[kernel]  # fmt: skip
    for gpus in (1, 2, 4, 8):
        micro = load("replknet_kernels", (f"{kernel},gpus={gpus}",))
        assert (micro.batch_size, micro.accumulation) == (16, 8 // gpus)


@reference_data.required
@pytest.mark.parametrize(
    ("case", "file", "row"),
    [
        ("seg_31b_40k", "upernet_replknet", "31b_ade20k"),
        ("seg_cityscapes_20k", "upernet_replknet", "31b_cityscapes"),
        ("seg_31l_80k", "upernet_replknet", "31l_22k_ade20k"),
        ("seg_xl_160k", "upernet_replknet", "xl_ade20k"),
        ("mmseg_sgd_80k", "deeplab_mobilenet_v2", "table3_3x3"),
    ],
)
def test_learning_rates_of_mmsegmentation(case, file, row):
    """README: 1e-5 in float32, 1e-9 in double precision."""
    path = reference_data.ROOT / "downstream/transforms/learning_rates.json"
    steps, rates = np.array(json.loads(path.read_text())[case]["rates"]).T
    config = load(file, (row,))
    length = configuration.run_length(config, steps_per_epoch=1000)
    schedule = configuration.build_schedule(config.optimizer, length)
    np.testing.assert_allclose(schedule(steps.astype(int)), rates, rtol=1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule(steps.astype(int)), rates, rtol=1e-9)


def test_decay_and_rates_reach_the_heads():
    """Norms do not decay, biases of convolutions do; rates fall through the backbone."""
    config = load("finetune")
    network = build_segmenter(config, 3)
    params = abstract_variables(network)["params"]
    mask = decayed(params, config.optimizer.decay_of)
    assert mask["decode_head"]["conv_seg"] == {"kernel": True, "bias": True}
    assert mask["decode_head"]["bottleneck"]["bn"] == {"scale": False, "bias": False}
    assert mask["backbone"]["stem_0"]["conv"]["kernel"]
    factor = layer_lr_factor(network, config.optimizer.layer_decay)
    heads = [factor((head, "conv_seg", "kernel")) for head in ("decode_head", "auxiliary_head")]
    assert heads == [1, 1]
    stem = factor(("backbone", "stem_0", "conv", "kernel"))
    assert stem == pytest.approx(0.9 ** (network.num_layers - 1))


def test_protocols():
    config = load("upernet_replknet", ("31l_22k_ade20k",))
    config.test.flip, config.test.ratios = True, (0.5, 1.0)
    full, fast = build_protocol(config), training_protocol(config)
    assert (full.window, full.stride, full.ratios, full.flip) == (640, 426, (0.5, 1.0), True)
    assert (fast.window, fast.ratios, fast.flip, fast.multiple) == (None, (0.5,), False, 32)
    config.test.in_training = "full"
    assert training_protocol(config) == full


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.crop_size": (512,)}, r"config\.data\.crop_size must be"),
        (
            {"data.crop_size": (64.5, 64)},
            r"crop_size must be \(height, width\) in whole",
        ),
        ({"data.crop_size": (10**6, 64)}, r"config\.data\.crop_size must be .* at most 16384"),
        ({"data.limits": (96.5, 48)}, r"config\.data\.limits must be"),
        ({"data.limits": (512, 2048)}, r"config\.data\.limits must be \(long, short\)"),
        ({"data.ratio_range": (2.0, 0.5)}, "config.data.ratio_range must be"),
        ({"data.cat_max_ratio": 0.0}, "config.data.cat_max_ratio must be"),
        ({"data.std": (1.0, 0.0, 1.0)}, "config.data.std must be"),
        ({"loss.auxiliary_weight": -1.0}, "config.loss.auxiliary_weight must be"),
        ({"loss.class_weights": (1.0, -1.0)}, "config.loss.class_weights must be"),
        ({"loss.ohem_threshold": 0.7}, "needs config.loss.ohem_min_kept"),
        ({"loss.ohem_min_kept": 0}, "config.loss.ohem_min_kept must be"),
        ({"test.in_training": "fast"}, "config.test.in_training must be whole or full"),
        ({"test.window": 512}, "config.test: window and stride"),
        ({"test.ratios": ()}, "config.test: ratios"),
        ({"test.pictures": -1}, "config.test.pictures must be"),
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
        ({"segmenter.head": "unet"}, "config.segmenter: Unknown segmentation network 'unet'"),
        ({"segmenter.dilations": (1, 2)}, "Unknown field dilations"),
        ({"model.name": "replknet_31c"}, "Unknown model 'replknet_31c'"),
        ({"model.in_channels": 1}, "Segmentation has colour images"),
        ({"segmenter.dilated_layers": 5}, "dilated_layers"),
        ({"segmenter.pool_scales": (0, 1)}, r"pool_scales of a UPerHead cannot be \(0, 1\)"),
        ({"segmenter.pool_scales": ()}, r"pool_scales of a UPerHead cannot be \(\)"),
        ({"segmenter.channels": 0}, "channels of a UPerHead cannot be 0"),
        ({"segmenter.auxiliary_channels": 0}, "channels of a FCNHead cannot be 0"),
        ({"segmenter.out_indices": (3,)}, "needs at least 2 feature maps"),
        ({"segmenter.out_indices": (1, 4)}, "out_indices"),
    ],
)
def test_networks_that_cannot_be_built(fields, message):
    config = common.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(RunError, match=message):
        build_segmenter(config, 3)
