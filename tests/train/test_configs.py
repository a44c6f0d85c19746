"""The experiments: every row of every file, and which network it trains."""

import dataclasses
import importlib
from pathlib import Path

import jax
import pytest

import configs
import replk_jax
from configs import common, digits, mobilenet_v2, replknet_kernels
from replk_jax.models.registry import FAMILIES, name_of
from replk_jax.models.repvgg import BLOCKS
from replk_jax.models.variables import abstract_variables
from train import config as configuration
from train.errors import RunError
from train.optimizer import warmup_cosine

PLAIN = ["31b", "common", "digits", "finetune"]
ROWS = {
    "repvgg_imagenet": [name.removeprefix("repvgg_") for name in replk_jax.list_models("repvgg_*")],
    "repvgg_ablations": list(BLOCKS),
    "mobilenet_v2": list(mobilenet_v2.MODELS),
    "replknet_kernels": list(replknet_kernels.MODELS),
}
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
    model = configuration.build_model(config)
    assert model.dtype == config.model.dtype
    if file not in ("digits", "repvgg_ablations"):  # these change the named network
        assert name_of(model.architecture) == config.model.name


@pytest.mark.parametrize("file", ROWS)
def test_an_unknown_row_names_the_known_ones(file):
    with pytest.raises(RunError, match="no row 'a9'; it has ") as caught:
        load(file, ("a9",))
    assert str(caught.value).endswith(", ".join(ROWS[file]) + ".")


def test_rows_of_the_papers():
    assert len(mobilenet_v2.MODELS) == 11
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
    schedule = warmup_cosine(recipe.peak_lr, recipe.final_lr, recipe.warmup_epochs, config.epochs)
    assert float(schedule(recipe.warmup_epochs)) == pytest.approx(0.1)
    assert float(schedule(config.epochs)) == 0


def test_the_recipe_of_the_kernel_sizes():
    config = load("replknet_kernels")
    recipe = config.optimizer
    assert (config.batch_size, config.epochs, config.label_smoothing) == (2048, 120, 0.1)
    assert (recipe.name, recipe.peak_lr, recipe.final_lr) == ("adamw", 4e-3, 1e-6)
    assert (recipe.weight_decay, recipe.decay_of, recipe.warmup_epochs) == (0.05, "kernels", 10)


def test_every_field_of_a_family_is_in_its_section():
    """All of the architecture but what the sections share; of the network only what it has."""
    sections = common.get_config().model
    for architecture, family in FAMILIES.items():
        section = set(sections[configuration.family_section(family)])
        of_architecture = {field.name for field in dataclasses.fields(architecture)}
        of_network = {field.name for field in dataclasses.fields(family)}
        assert of_architecture - {"in_channels"} <= section
        assert section <= of_architecture | of_network


@pytest.mark.parametrize("name", replk_jax.list_models())
def test_the_digits_take_any_name(name):
    """Small, but what the name is about stays."""
    config = digits.get_config()
    config.model.name = name
    configuration.check(config)
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
