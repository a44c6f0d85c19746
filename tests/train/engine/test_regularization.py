"""RepVGG's penalty on merged kernels."""

import jax
import numpy as np
import pytest

import replk_jax
from configs import repvgg_imagenet
from tests.helpers import random_variables
from train.engine import regularization
from train.engine.config import build_penalty
from train.engine.regularization import penalised_kernels
from train.errors import RunError

custom_l2 = jax.jit(regularization.custom_l2)


def variables(**fields):
    model = replk_jax.create_model(
        "repvgg_a0", layers=(2, 1), channels=(4, 4, 8), num_classes=3, **fields
    )
    return model, random_variables(model)


def by_hand(params, stats):
    """The official formula in float64, an output channel and a tap at a time."""
    total = 0.0
    for name in params:
        if name == "linear":
            continue
        (k3, t3), (k1, t1) = (
            (
                np.float64(params[name][branch]["conv"]["kernel"]),
                np.float64(params[name][branch]["bn"]["scale"])
                / np.sqrt(np.float64(stats[name][branch]["bn"]["var"]) + 1e-5),
            )
            for branch in ("rbr_dense", "rbr_1x1")
        )
        for i, o in np.ndindex(k3.shape[2:]):
            total += sum(k3[r, c, i, o] ** 2 for r, c in np.ndindex(3, 3) if (r, c) != (1, 1))
            merged = k3[1, 1, i, o] * t3[o] + k1[0, 0, i, o] * t1[o]
            total += merged**2 / (t3[o] ** 2 + t1[o] ** 2)
    return total


@pytest.mark.parametrize("groups", [1, 2])
def test_against_the_formula(groups):
    """Within float32's rounding."""
    _, tree = variables(groups=groups)
    expected = by_hand(tree["params"], tree["batch_stats"])
    np.testing.assert_allclose(custom_l2(tree["params"], tree["batch_stats"]), expected, rtol=1e-5)
    recipe = repvgg_imagenet.get_config().optimizer
    assert build_penalty(recipe) is None
    recipe.custom_l2 = True
    penalty = jax.jit(build_penalty(recipe))(tree["params"], tree["batch_stats"])
    np.testing.assert_allclose(penalty, 0.5e-4 * expected, rtol=1e-5)


def test_it_is_as_large_as_plain_decay_where_branches_are_alike():
    """With equal batch norms and K1 = 0 the square of the centre counts half, as t^2 / 2 t^2."""
    _, tree = variables()
    params, stats = tree["params"], tree["batch_stats"]
    for name in set(params) - {"linear"}:
        for branch in ("rbr_dense", "rbr_1x1"):
            params[name][branch]["bn"]["scale"] = np.float32(2)
            stats[name][branch]["bn"]["var"] = np.float32(3)
        params[name]["rbr_1x1"]["conv"]["kernel"] *= 0
    kernels = [params[name]["rbr_dense"]["conv"]["kernel"] for name in set(params) - {"linear"}]
    expected = sum(np.sum(k**2) - np.sum(k[1, 1] ** 2) / 2 for k in kernels)
    np.testing.assert_allclose(custom_l2(params, stats), expected, rtol=1e-5)


def test_only_the_kernels_have_a_gradient():
    """Batch norms are constants: a penalty that could be had for less by a larger scale would
    shape nothing. The kernels' gradient is that of the formula."""
    _, tree = variables()
    params, stats = tree["params"], tree["batch_stats"]
    of_params, of_stats = jax.jit(jax.grad(custom_l2, (0, 1)))(params, stats)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_stats))
    moved = {
        tuple(key.key for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_params)
        if np.any(leaf)
    }
    assert moved == penalised_kernels(params)
    assert len(moved) == 8
    kernel = params["stage1_0"]["rbr_1x1"]["conv"]["kernel"]
    nudged = jax.tree.map(np.copy, params)
    differences = []
    for sign in (1, -1):
        nudged["stage1_0"]["rbr_1x1"]["conv"]["kernel"] = np.float64(kernel)
        nudged["stage1_0"]["rbr_1x1"]["conv"]["kernel"][0, 0, 1, 2] += sign * 1e-5
        differences.append(by_hand(nudged, stats))
    slope = (differences[0] - differences[1]) / 2e-5
    actual = of_params["stage1_0"]["rbr_1x1"]["conv"]["kernel"][0, 0, 1, 2]
    np.testing.assert_allclose(actual, slope, rtol=1e-4)


@pytest.mark.parametrize(
    "block", ["norm_after_addition", "identity_without_norm", "relu_in_branches", None]
)
def test_networks_with_other_blocks_are_refused(block):
    params = {"conv1": {"conv": {"kernel": np.ones((3, 3, 1, 1))}}}  # a ResNet
    if block:
        params = variables(block=block)[1]["params"]
    with pytest.raises(RunError, match=r"config\.optimizer\.custom_l2 .* turn it off"):
        custom_l2(params, {})
    with pytest.raises(RunError, match="turn it off"):
        penalised_kernels(params)
