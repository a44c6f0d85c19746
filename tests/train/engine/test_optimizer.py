"""The papers' optimizers, what decays, and learning rates by layer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import replk_jax
from configs import common, mobilenet_v2, repvgg_imagenet
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from train.engine.config import build_optimizer
from train.engine.freezing import Freezing
from train.engine.optimizer import by_path, decayed, layer_lr_factor, make_optimizer
from train.engine.schedules import warmup_cosine
from train.errors import RunError

ADAMW = common.get_config().optimizer


def lr_factors(model, params=None, **settings):
    """The factor on the learning rate of every parameter of a network."""
    params = abstract_variables(model)["params"] if params is None else params
    return by_path(layer_lr_factor(model, **settings), params)


def test_adamw_against_the_formula():
    """Loshchilov & Hutter, algorithm 2, in float64; one tensor decays and one does not."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)}
    schedule = warmup_cosine(0.01, 1e-4, 3, 20)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.05)
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    actual = jax.tree.map(jnp.float32, params)
    moments = {name: (0.0, 0.0) for name in params}
    for step in range(5):
        grads = {name: rng.standard_normal(leaf.shape) for name, leaf in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, actual)
        actual = jax.tree.map(jnp.add, actual, updates)
        rate = float(schedule(step))
        for name, grad in grads.items():
            m = 0.9 * moments[name][0] + 0.1 * grad
            v = 0.999 * moments[name][1] + 0.001 * grad**2
            moments[name] = m, v
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            decay = 0.05 if name == "kernel" else 0.0
            params[name] = params[name] - rate * (
                m_hat / (np.sqrt(v_hat) + 1e-8) + decay * params[name]
            )
    for name in params:
        np.testing.assert_allclose(actual[name], params[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_against_the_formula(nesterov):
    """torch.optim.SGD's, in float64: decay in the gradient, no damping, and the learning rate
    outside the momentum."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)}
    schedule = warmup_cosine(0.1, 0, 2, 10)
    optimizer = make_optimizer("sgd", schedule, momentum=0.8, nesterov=nesterov, weight_decay=0.05)
    actual = jax.tree.map(jnp.float32, params)
    state = optimizer.init(actual)
    velocity = dict.fromkeys(params, 0.0)
    for step in range(6):
        grads = {name: rng.standard_normal(leaf.shape) for name, leaf in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, actual)
        actual = jax.tree.map(jnp.add, actual, updates)
        for name, grad in grads.items():
            grad = grad + (0.05 if name == "kernel" else 0.0) * params[name]
            velocity[name] = 0.8 * velocity[name] + grad
            direction = grad + 0.8 * velocity[name] if nesterov else velocity[name]
            params[name] = params[name] - float(schedule(step)) * direction
    for name in params:
        np.testing.assert_allclose(actual[name], params[name], rtol=1e-5, atol=1e-6)


def moved_by_decay(model, recipe):
    """Paths of the parameters that move although all gradients are zero."""
    params = abstract_variables(model)["params"]
    small = jax.tree.map(lambda leaf: jnp.ones((1,) * len(leaf.shape)), params)
    optimizer = build_optimizer(recipe, lambda step: 0.1, Freezing(model))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, small), optimizer.init(small), small)
    return {path for path, update in flatten_dict(updates).items() if np.any(update != 0)}


def paths_of(official_names, scales=()):
    """Where these parameters are in the tree; of `scales`, the ends of names, the batch norms'."""
    paths = set()
    for name in official_names:
        *modules, last = reference_data.flax_path(name)
        weight = "scale" if name.endswith(scales) else "kernel"
        paths.add((*modules, weight if last == "weight" else last))
    return paths


@reference_data.required
def test_the_same_parameters_decay_as_in_the_official_groups():
    groups = json.loads(
        (reference_data.ROOT / "training/param_groups_31b_no_layer_decay.json").read_text()
    )
    expected = {name for group in groups for name in group["params"] if group["weight_decay"] > 0}
    assert moved_by_decay(replk_jax.create_model("replknet_31b"), ADAMW) == paths_of(expected)


@reference_data.required
@pytest.mark.parametrize(("name", "decay"), [("31b", 0.7), ("xl", 0.8)])
def test_learning_rates_by_layer_are_the_official_ones(name, decay):
    """Of every parameter; and what decays does so whatever its learning rate."""
    path = reference_data.ROOT / f"training/param_groups_{name}_layer_decay_{decay}.json"
    groups = json.loads(path.read_text())
    expected = {key: group["lr_scale"] for group in groups for key in group["params"]}
    factors = lr_factors(replk_jax.create_model(f"replknet_{name}"), decay=decay)
    actual = reference_data.by_official_name({"params": factors})
    assert actual.keys() == expected.keys()
    for key, scale in expected.items():
        assert float(actual[key]) == pytest.approx(scale, rel=1e-12), key


def test_layer_decay_scales_whole_steps():
    """Two steps of AdamW with weight decay, against those without layer decay."""
    model = replk_jax.create_model("replknet_31b")
    params = {
        "stem_0": {"conv": {"kernel": jnp.ones((2, 2))}},
        "stages_2": {"blocks_9": {"pw1": {"conv": {"kernel": jnp.full((2, 2), 2.0)}}}},
        "head": {"kernel": jnp.full((2, 2), 3.0)},
    }
    schedule = warmup_cosine(0.1, 0.01, 0, 4)
    steps = {}
    for decay in (1.0, 0.5):
        recipe = common.get_config().optimizer
        recipe.layer_decay = decay
        optimizer = build_optimizer(recipe, schedule, Freezing(model))
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
        steps[decay] = [float(leaf[0, 0]) for leaf in jax.tree.leaves(updates)]
    head, stage, stem = steps[1.0]
    expected = [head, stage * 0.5 ** (13 - 5), stem * 0.5**13]
    np.testing.assert_allclose(steps[0.5], expected, rtol=1e-6)


# The start of the official names of a group's parameters, from the image to the classifier.
STAGES = [
    ("stem.",),
    *((f"stages.{stage}.", f"transitions.{stage}.") for stage in range(3)),
    ("stages.3.",),
    ("norm.", "head."),
]


@pytest.mark.parametrize("name", ["31b", "xl"])
def test_learning_rates_by_stage(name):
    """Of every parameter, against a table by name: 1 for the head, 0.4 ** 5 for the stem."""
    factors = lr_factors(replk_jax.create_model(f"replknet_{name}"), decay=0.4, by="stage")
    scales = reference_data.by_official_name({"params": factors})
    counts = [0] * len(STAGES)
    for key, scale in scales.items():
        (group,) = (i for i, starts in enumerate(STAGES) if key.startswith(starts))
        assert float(scale) == pytest.approx(0.4 ** (len(STAGES) - 1 - group), rel=1e-12), key
        counts[group] += 1
    assert len(scales) == len(jax.tree.leaves(factors))
    assert min(counts) >= 4


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_stages_count_from_the_head_whatever_their_number(stages):
    model = replk_jax.create_model(
        "replknet_31b", kernel_sizes=(5,) * stages, layers=(1,) * stages, channels=(8,) * stages
    )
    scales = lr_factors(model, decay=0.5, by="stage")
    assert set(jax.tree.leaves(scales[f"stages_{stages - 1}"])) == {0.5}
    assert set(jax.tree.leaves(scales["stages_0"])) == {0.5**stages}
    assert set(jax.tree.leaves(scales["stem_0"])) == {0.5 ** (stages + 1)}


def test_norms_of_stage_outputs_are_in_their_stages():
    """A backbone without head has the factors that its classifier has."""
    backbone = replk_jax.create_model(
        "replknet_31b",
        num_classes=None,
        out_indices=(0, 3),
        norm_intermediate_features=True,
    )
    scales = lr_factors(backbone, decay=0.5, by="stage")
    assert not {"norm", "head"} & set(scales)
    for stage in range(4):
        assert set(jax.tree.leaves(scales[f"stages_{stage}"])) == {0.5 ** (4 - stage)}


def test_a_step_by_stage():
    """One step of SGD, which is the learning rate times the gradient, here 1."""
    paths = [("stem_3", "conv"), ("stages_0", "blocks_0"), ("transitions_0_0", "conv"),
             ("stages_1", "blocks_3"), ("norm", "bn"), ("head", "linear")]  # fmt: skip
    params = {first: {second: {"kernel": jnp.ones((2, 2))}} for first, second in paths}
    model = replk_jax.create_model(
        "replknet_31b", kernel_sizes=(5, 5), layers=(1, 2), channels=(8, 8)
    )
    factor = layer_lr_factor(model, 0.4, "stage")
    optimizer = make_optimizer("sgd", lambda step: 0.1, momentum=0.0, lr_factor=factor)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    actual = [-float(updates[first][second]["kernel"][0, 0]) for first, second in paths]
    np.testing.assert_allclose(actual, [0.0064, 0.016, 0.016, 0.04, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("by", ["layer", "stage"])
@pytest.mark.parametrize("name", ["repvgg_a0", "mobilenet_v2", "resnet_101"])
def test_layer_decay_of_other_families(name, by):
    """From decay ** (groups - 1) to 1 at the classifier, which has both of its parameters there."""
    model = replk_jax.create_model(name)
    factors = lr_factors(model, decay=0.5, by=by)
    groups = model.num_layers if by == "layer" else len(model.stage_channels) + 2
    found = set(jax.tree.leaves(factors))
    assert found == {0.5**distance for distance in range(groups)}
    assert jax.tree.leaves(factors[model.head_name]) == [1.0, 1.0]


def test_a_path_in_no_group():
    model = replk_jax.create_model("replknet_31b", kernel_sizes=(5,) * 5, layers=(1,) * 5,
                                   channels=(8,) * 5)  # fmt: skip
    optimizer = make_optimizer("sgd", lambda step: 0.1, lr_factor=layer_lr_factor(model, 0.7))
    with pytest.raises(RunError, match=r"config\.optimizer\.layer_decay, by layer: "):
        jax.eval_shape(optimizer.init, abstract_variables(model)["params"])


def test_a_learning_rate_of_the_head():
    """Ten times that of the backbone (semseg's PSPNet), and with layer decay both factors."""
    model = replk_jax.create_model("replknet_31b")
    factors = lr_factors(model, head_factor=10.0)
    assert {name for name in factors if 10.0 in jax.tree.leaves(factors[name])} == {"norm", "head"}
    assert set(jax.tree.leaves(factors)) == {1.0, 10.0}
    factors = lr_factors(model, decay=0.5, head_factor=10.0)
    assert set(jax.tree.leaves(factors["head"])) == {10.0}
    assert set(jax.tree.leaves(factors["stages_3"])) == {0.5}
    recipe = common.sgd_on_imagenet().optimizer
    recipe.weight_decay, recipe.head_lr_factor = 0.0, 10.0
    optimizer = build_optimizer(recipe, lambda step: 0.1, Freezing(model))
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("stem_0", "head")}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    steps = [float(-updates[name]["kernel"][0, 0]) for name in ("stem_0", "head")]
    np.testing.assert_allclose(steps, [0.1, 1.0], rtol=1e-6)


@reference_data.required
def test_the_same_parameters_of_repvgg_decay_as_in_the_official_groups():
    path = reference_data.ROOT / "training/repvgg_a0_weight_decay_groups.json"
    names = json.loads(path.read_text())["with_weight_decay"]
    expected = paths_of(names, scales=("rbr_identity.weight",))
    recipe = repvgg_imagenet.get_config().optimizer
    model = replk_jax.create_model("repvgg_a0")
    assert moved_by_decay(model, recipe) == expected
    # The penalty on the merged kernels takes the place of the decay of their branches.
    recipe.custom_l2 = True
    branches = {path for path in expected if path[-2:] == ("conv", "kernel")}
    assert len(branches) == 2 * 22
    assert moved_by_decay(model, recipe) == expected - branches


def test_all_parameters_of_mobilenet_v2_decay():
    layer = {"conv": {"kernel": np.ones((1, 1, 2, 2))}, "bn": {"scale": np.ones(2)}}
    params = {"conv1": layer, "classifier": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
    assert all(jax.tree.leaves(decayed(params, mobilenet_v2.get_config().optimizer.decay_of)))


def test_decay_of_all_but_norms():
    """mmcv's norm_decay_mult=0: the biases of convolutions and FCOS's scales do decay."""
    conv = {"kernel": np.ones((1, 1, 2, 2)), "bias": np.ones(2)}
    norm = {"scale": np.ones(2), "bias": np.ones(2)}
    params = {"layer": {"conv": conv, "bn": norm}, "rbr_identity": norm, "scales_0": {"scale": 1.0}}
    decaying = flatten_dict(decayed(params, "except_norms"), sep=".")
    assert {path for path, decays in decaying.items() if decays} == {
        "layer.conv.kernel", "layer.conv.bias", "scales_0.scale",
    }  # fmt: skip


@pytest.mark.parametrize("norm", [0.5, 20.0])
def test_clipping_cuts_the_norm_of_the_whole_gradient(norm):
    """By SGD without momentum, whose step is the gradient: 13 long, or as long as it may be."""
    grads = {"kernel": jnp.full((2, 2), 6.0), "bias": jnp.array([-5.0])}
    optimizer = make_optimizer("sgd", lambda step: 1.0, momentum=0.0, clip_norm=norm)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    factor = min(1, norm / 13)
    for name, grad in grads.items():
        np.testing.assert_allclose(updates[name], -factor * grad, rtol=1e-6)


def test_an_unknown_optimizer():
    with pytest.raises(ValueError, match="one of adamw, sgd; got 'adam'"):
        make_optimizer("adam", lambda step: 0.1)
