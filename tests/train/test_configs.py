"""The experiments: every row of every file, and which network it trains."""

import dataclasses
import importlib
from pathlib import Path

import jax
import pytest

import configs
import replk_jax
from configs import common, digits, guideline3, mobilenet_v2, replknet_kernels
from replk_jax.models.registry import FAMILIES, name_of
from replk_jax.models.repvgg import BLOCKS
from replk_jax.models.variables import abstract_variables
from train.engine import config as configuration
from train.engine.schedules import warmup_cosine
from train.errors import RunError
from train.tasks import classification_config

PLAIN = ["31b", "31b_384", "common", "digits", "finetune", "photographs", "xl_pretraining"]
ROWS = {
    "guideline3": list(guideline3.SMALL_KERNELS),
    "imagenet22k": ["31b", "31l"],
    "from_22k": ["31b_224", "31b_384", "31l_384"],
    "xl_320": ["paper", "official"],
    "repvgg_imagenet": [name.removeprefix("repvgg_") for name in replk_jax.list_models("repvgg_*")],
    "repvgg_ablations": list(BLOCKS),
    "mobilenet_v2": list(mobilenet_v2.MODELS),
    "replknet_kernels": list(replknet_kernels.MODELS),
}
# Their networks are not the named ones: smaller, or of other blocks.
CHANGED = {"digits", "guideline3", "photographs", "repvgg_ablations"}
ALL = [(file, ()) for file in (*PLAIN, *ROWS)] + [
    (file, (row,)) for file, rows in ROWS.items() for row in rows
]


def load(file, row=()):
    return importlib.import_module(f"configs.{file}").get_config(*row)


def test_every_file_is_here():
    files = {path.stem for path in Path(configs.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == {*PLAIN, *ROWS}


@pytest.mark.parametrize(("file", "row"), ALL, ids=lambda value: "".join(value))
def test_every_row_makes_sense_and_builds_its_model(file, row):
    config = load(file, row)
    configuration.check(config)
    classification_config.check(config)
    model = configuration.build_model(config)
    assert model.dtype == config.model.dtype
    if file not in CHANGED:
        assert name_of(model) == config.model.name


@pytest.mark.parametrize("file", ROWS)
def test_an_unknown_row_names_the_known_ones(file):
    with pytest.raises(RunError, match="no row 'a9'; it has ") as caught:
        load(file, ("a9",))
    assert str(caught.value).endswith(", ".join(ROWS[file]) + ".")


def test_rows_of_the_papers():
    assert len(mobilenet_v2.MODELS) == 13
    for row, kernels, small, shortcuts in [
        ("table2_3x3", (3,) * 7, None, True),
        ("table2_13x13_no_shortcuts", (13,) * 7, None, False),
        ("table3_9x9_reparam", (9,) * 7, 3, True),
        ("table3_13x13", (13,) * 7, None, True),
    ]:
        network = configuration.build_model(load("mobilenet_v2", (row,))).architecture
        assert (network.kernel_sizes, network.small_kernel, network.shortcuts) == (
            kernels, small, shortcuts,
        )  # fmt: skip
    for row, kernels in [("3", (3, 3, 3, 3)), ("25", (25, 25, 25, 13)), ("31", (31, 29, 27, 13))]:
        network = configuration.build_model(load("replknet_kernels", (row,))).architecture
        assert network.kernel_sizes == kernels
    b0 = replk_jax.create_model("repvgg_b0").architecture
    for block in BLOCKS:
        network = configuration.build_model(load("repvgg_ablations", (block,))).architecture
        assert network == dataclasses.replace(b0, block=block)
    b1g2 = configuration.build_model(load("repvgg_imagenet", ("b1g2",)))
    assert b1g2.architecture.groups == 2


@pytest.mark.parametrize(
    ("file", "epochs", "decay", "decay_of"),
    [("repvgg_imagenet", 120, 1e-4, "repvgg"), ("mobilenet_v2", 100, 4e-5, "all")],
)
def test_the_recipes_of_sgd(file, epochs, decay, decay_of):
    config = load(file)
    recipe = config.optimizer
    assert (config.batch_size, config.epochs, config.label_smoothing) == (256, epochs, 0)
    assert (recipe.name, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, False)
    assert (recipe.weight_decay, recipe.decay_of, recipe.custom_l2) == (decay, decay_of, False)
    assert (recipe.clip_norm, recipe.layer_decay, recipe.warmup_epochs) == (None, 1, 5)
    assert (config.accumulation, config.eval_batch_size, config.ema_decay) == (1, 256, 0)
    assert_crops_and_flips_only(config)
    data = config.data
    assert (data.image_size, data.resizing, data.eval_crop_fraction) == (224, "bilinear", 0.875)
    assert config.model.dtype == "float32"
    schedule = warmup_cosine(recipe.peak_lr, recipe.final_lr, recipe.warmup_epochs, config.epochs)
    assert float(schedule(recipe.warmup_epochs)) == pytest.approx(0.1)
    assert float(schedule(config.epochs)) == 0


def assert_crops_and_flips_only(config):
    data, mixing = config.data, config.augmentation
    assert (data.rand_augment, data.color_jitter, data.flip) == ("none", 0, True)
    assert (data.crop_scale, data.crop_ratio) == ((0.08, 1), (3 / 4, 4 / 3))
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.erasing_probability) == (0, 0, 0)


# Batch, epochs, warm-up, first and last learning rate, weight decay, layer decay, stochastic depth,
# EMA, mixup and cutmix, resolution; and images per GPU. Of the published commands and appendix A of
# the paper, with BEiT's command for BEiT-L for what the latter does not say of XL at 320.
RECIPES = [
    ("31b", (), (2048, 300, 10, 4e-3, 1e-6, 0.05, 1, 0.5, 0.9999, True, 224), 64),
    *(
        ("replknet_kernels", (k,), (2048, 120, 10, 4e-3, 1e-6, 0.05, 1, 0.3, 0, True, 224), 64)
        for k in replknet_kernels.MODELS
    ),
    ("31b_384", (), (1024, 30, 1, 4e-4, 1e-6, 1e-8, 0.7, 0.8, 0.9999, False, 384), 32),
    ("imagenet22k", ("31b",), (4096, 90, 5, 4e-3, 1e-6, 0.05, 1, 0.1, 0, True, 224), 32),
    ("imagenet22k", ("31l",), (4096, 90, 5, 4e-3, 1e-6, 0.05, 1, 0.1, 0, True, 224), 32),
    ("from_22k", ("31b_224",), (512, 30, 1, 4e-4, 1e-6, 1e-8, 0.7, 0.2, 0.9999, False, 224), 32),
    ("from_22k", ("31b_384",), (512, 30, 1, 4e-4, 3e-4, 1e-8, 0.7, 0.3, 0.9999, False, 384), 16),
    ("from_22k", ("31l_384",), (512, 30, 1, 4e-4, 3e-4, 1e-8, 0.7, 0.3, 0.9999, False, 384), 16),
    ("xl_pretraining", (), (2048, 15, 1, 1.5e-3, 1e-6, 0.05, 1, 0.2, 0, False, 224), 32),
    ("xl_320", (), (512, 30, 5, 1e-4, 1e-6, 1e-8, 0.4, 0.4, 0, False, 320), 16),
    ("xl_320", ("official",), (512, 30, 1, 4e-4, 3e-4, 1e-8, 0.8, 0.3, 0.9999, False, 320), 16),
]


@pytest.mark.parametrize(("file", "row", "expected", "images"), RECIPES)
def test_the_recipes_of_replknet(file, row, expected, images):
    config = load(file, row)
    recipe, mixing = config.optimizer, config.augmentation
    assert (
        config.batch_size, config.epochs, recipe.warmup_epochs, recipe.peak_lr, recipe.final_lr,
        recipe.weight_decay, recipe.layer_decay, config.model.replknet.drop_path_rate,
        config.ema_decay, mixing.mixup_alpha == 0.8 and mixing.cutmix_alpha == 1.0,
        config.data.image_size,
    ) == expected  # fmt: skip
    assert (recipe.name, recipe.decay_of, recipe.clip_norm) == ("adamw", "kernels", None)
    assert (recipe.b1, recipe.b2, recipe.eps) == (0.9, 0.999, 1e-8)
    assert recipe.layer_decay_by == ("stage" if recipe.layer_decay == 0.4 else "layer")
    assert (config.data.rand_augment, mixing.erasing_probability) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (config.label_smoothing, config.model.dtype) == (0.1, "bfloat16")
    assert (mixing.mix_probability, mixing.switch_probability) == (1, 0.5)
    assert (config.data.crop_scale, config.data.crop_ratio) == ((0.08, 1), (3 / 4, 4 / 3))
    assert (config.data.flip, config.data.resizing) == (True, "opencv")  # bicubic
    of_xl = config.model.name == "replknet_xl"
    assert config.data.mean == ((0.5,) * 3 if of_xl else (0.485, 0.456, 0.406))
    assert config.data.std == ((0.5,) * 3 if of_xl else (0.229, 0.224, 0.225))
    assert config.init_reset_head == (file in ("from_22k", "xl_320"))
    # At 384 images are warped, below cropped from 256 / 224 of their size.
    assert (config.data.eval_crop_fraction is None) == (config.data.image_size == 384)
    for gpus in (1, 8):
        on_fewer = load(file, (",".join((*row, f"gpus={gpus}")),))
        assert on_fewer.accumulation == config.batch_size // (gpus * images)
        assert on_fewer.eval_batch_size == gpus * images
        on_fewer.accumulation, on_fewer.eval_batch_size = 1, config.eval_batch_size
        assert on_fewer == config
    if expected[9]:  # what a GPU had at a time was mixed alike
        assert mixing.mixup_group_size == images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus=3", r"micro-batches of 3 GPUs with 64 images .* GPUs are 1, 2, 4, 8, 16, 32\."),
        ("gpus=0", "0 GPUs"),
        ("gpus=64", "64 GPUs"),
        ("gpus=x", "Expected gpus=N after the colon; got 'gpus=x'"),
        ("8", "after the colon"),
    ],
)
def test_gpus_that_make_no_batch(text, message):
    with pytest.raises(RunError, match=message):
        load("31b", (text,))


def test_every_field_of_a_family_is_in_its_section():
    """All of the architecture but what the sections share; of the network only what it has."""
    sections = common.get_config().model
    for family in FAMILIES:
        section = set(sections[family.name])
        of_architecture = {field.name for field in dataclasses.fields(family.architecture)}
        of_network = {field.name for field in dataclasses.fields(family.network)}
        assert of_architecture - {"in_channels"} <= section
        assert section <= of_architecture | of_network


@pytest.mark.parametrize("name", replk_jax.list_models())
def test_the_digits_take_any_name(name):
    """Small, but what the name is about stays."""
    config = digits.get_config()
    config.model.name = name
    configuration.check(config)
    classification_config.check(config)
    model = configuration.build_model(config)
    leaves = jax.tree.leaves(abstract_variables(model)["params"])
    assert sum(leaf.size for leaf in leaves) < 2e6
    named, small = replk_jax.create_model(name).architecture, model.architecture
    assert type(named) is type(small)
    size = {"layers", "channels", "stem_channels", "last_channels", "in_channels"}
    if name.startswith("replknet"):
        size.add("kernel_sizes")
    for field in {field.name for field in dataclasses.fields(named)} - size:
        assert getattr(small, field) == getattr(named, field), field


def test_a_small_kernel_of_0_is_none():
    for name, section in (
        ("replknet_31b", "replknet"),
        ("mobilenet_v2_13_reparam", "mobilenet_v2"),
    ):
        config = common.get_config()
        config.model.name = name
        config.model[section].small_kernel = 0
        assert configuration.build_model(config).architecture.small_kernel is None


def test_other_families_sections_do_not_matter():
    config = common.get_config()
    config.model.name = "resnet_101"
    config.model.repvgg.layers = (1, 2)
    config.model.replknet.kernel_sizes = (4,)
    assert configuration.build_model(config).architecture.layers == (3, 4, 23, 3)
