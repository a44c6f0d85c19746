"""A few steps of training of every family, and of every block that has a recipe."""

import jax
import numpy as np
import pytest

import replk_jax
from configs import common, repvgg_imagenet
from replk_jax.models.registry import FAMILIES
from replk_jax.models.repvgg import BLOCKS
from tests.helpers import data_mesh
from tests.train import tiny
from train.engine import parallel
from train.engine.config import build_optimizer, build_penalty
from train.engine.freezing import Freezing
from train.engine.step import init_state, make_train_step

STEPS = 16

REPVGG = dict(layers=(2,), channels=(4, 4))
MOBILENET = dict(
    layers=(1, 1), channels=(4, 8), strides=(1, 2), expansions=(1, 2), kernel_sizes=(3, 5),
    stem_channels=4, last_channels=8, dropout_rate=0.1,
)  # fmt: skip
REPLKNET = dict(kernel_sizes=(5,), layers=(1,), channels=(8,), drop_path_rate=0.1)
SGD, ADAMW = repvgg_imagenet.get_config().optimizer, common.get_config().optimizer
SGD_AND_L2 = repvgg_imagenet.get_config().optimizer
SGD_AND_L2.custom_l2 = True

# Name of the model, its fields, and the recipe.
CASES = {
    "replknet": ("replknet_31b", {**REPLKNET, "small_kernel": 3}, ADAMW),
    "mobilenet_v2_reparam": ("mobilenet_v2_13_reparam", MOBILENET, SGD),
    "resnet": ("resnet_101", dict(layers=(2,), channels=(4,)), SGD),
    "repvgg_g2_se": (
        "repvgg_b1g2",
        dict(layers=(2,), channels=(16, 16), squeeze_excite=True),
        SGD,
    ),
    **{f"repvgg_{block}": ("repvgg_b0", {**REPVGG, "block": block}, SGD) for block in BLOCKS},
    "repvgg_residual": (
        "repvgg_b0",
        dict(layers=(2, 1), channels=(4, 4, 4), block="residual"),
        SGD,
    ),
    "repvgg_repvgg": ("repvgg_b0", REPVGG, SGD_AND_L2),
}
# A network of each family, and of RepVGG every part that has parameters of its own; the other
# blocks combine the same parts.
EVERY_DAY = {
    "replknet", "mobilenet_v2_reparam", "resnet", "repvgg_g2_se", "repvgg_repvgg", "repvgg_dbb",
    "repvgg_diracnet", "repvgg_residual",
}  # fmt: skip


def batch_of_noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    return {"image": images, "label": np.arange(8, dtype=np.int32) % 4}


@pytest.mark.parametrize(
    "case",
    [
        case if case in EVERY_DAY else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in CASES
    ],
)
def test_it_learns_one_batch_by_heart(case):
    name, fields, recipe = CASES[case]
    model = replk_jax.create_model(name, num_classes=4, **fields)
    mesh = data_mesh(1)
    optimizer = build_optimizer(
        recipe, lambda step: 1e-2 if recipe is ADAMW else 0.1, Freezing(model)
    )
    state = init_state(model, optimizer, (16, 16), 0, mesh)
    before = jax.tree.map(np.array, state.variables)
    step = make_train_step(
        model, optimizer, tiny.loss(), seed=0, mesh=mesh, penalty=build_penalty(recipe)
    )
    (batch,) = parallel.global_batches([batch_of_noise()], mesh)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0], losses
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(state.variables), strict=True
    ):  # every parameter and every statistic
        assert np.any(old != new)


def test_every_family_is_among_them():
    families = {type(replk_jax.create_model(CASES[case][0])) for case in EVERY_DAY}
    assert families == {family.network for family in FAMILIES}
