"""The papers' optimisers, their decay, and the schedule."""

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
from train.engine.optimizer import decayed, layer_scales, make_optimizer, warmup_cosine
from train.errors import RunError

RECIPE = common.get_config().optimizer  # AdamW's


@reference_data.required
@pytest.mark.parametrize("name", ["lr with warm-up epochs", "lr with warm-up steps", "no warm-up"])
def test_schedule_is_the_official_one(name):
    """Every value; 1e-6 of the peak is float32's rounding."""
    case = json.loads((reference_data.ROOT / "training/cosine_schedules.json").read_text())[name]
    arguments, expected = case["arguments"], np.array(case["values"])
    per_epoch = arguments["niter_per_ep"]
    warmup = arguments.get("warmup_steps", arguments.get("warmup_epochs", 0) * per_epoch)
    schedule = warmup_cosine(
        arguments["base_value"], arguments["final_value"], warmup, arguments["epochs"] * per_epoch
    )
    actual = [float(schedule(step)) for step in range(len(expected))]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * arguments["base_value"])


def test_schedule_stays_at_its_end():
    schedule = warmup_cosine(1.0, 0.1, 2, 10)
    assert float(schedule(10)) == float(schedule(50)) == pytest.approx(0.1)


def test_adamw_against_the_formula():
    """Loshchilov & Hutter, algorithm 2, in float64; one tensor decays and one does not."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)}
    schedule = warmup_cosine(0.01, 1e-4, 3, 20)
    optimizer = make_optimizer(RECIPE, schedule)
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
    recipe = common.sgd_on_imagenet().optimizer
    recipe.update(nesterov=nesterov, momentum=0.8, weight_decay=0.05, decay_of="kernels")
    schedule = warmup_cosine(0.1, 0, 2, 10)
    optimizer = make_optimizer(recipe, schedule)
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
    optimizer = make_optimizer(recipe, lambda step: 0.1)
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
    assert moved_by_decay(replk_jax.create_model("replknet_31b"), RECIPE) == paths_of(expected)


@reference_data.required
@pytest.mark.parametrize(("name", "decay"), [("31b", 0.7), ("xl", 0.8)])
def test_learning_rates_by_layer_are_the_official_ones(name, decay):
    """Of every parameter; and what decays does so whatever its learning rate."""
    path = reference_data.ROOT / f"training/param_groups_{name}_layer_decay_{decay}.json"
    groups = json.loads(path.read_text())
    expected = {key: group["lr_scale"] for group in groups for key in group["params"]}
    params = abstract_variables(replk_jax.create_model(f"replknet_{name}"))["params"]
    scales = layer_scales(params, decay)
    actual = reference_data.by_official_name({"params": scales})
    assert actual.keys() == expected.keys()
    for key, scale in expected.items():
        assert float(actual[key]) == pytest.approx(scale, rel=1e-12), key


def test_layer_decay_scales_whole_steps():
    """Two steps of AdamW with weight decay, against those without layer decay."""
    params = {
        "stem_0": {"conv": {"kernel": jnp.ones((2, 2))}},
        "stages_2": {"blocks_9": {"pw1": {"conv": {"kernel": jnp.full((2, 2), 2.0)}}}},
        "head": {"kernel": jnp.full((2, 2), 3.0)},
    }
    schedule = warmup_cosine(0.1, 0.01, 0, 4)
    steps = {}
    for decay in (1.0, 0.5):
        optimizer = make_optimizer({**RECIPE, "layer_decay": decay}, schedule)
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
    params = abstract_variables(replk_jax.create_model(f"replknet_{name}"))["params"]
    scales = reference_data.by_official_name({"params": layer_scales(params, 0.4, "stage")})
    counts = [0] * len(STAGES)
    for key, scale in scales.items():
        (group,) = (i for i, starts in enumerate(STAGES) if key.startswith(starts))
        assert float(scale) == pytest.approx(0.4 ** (len(STAGES) - 1 - group), rel=1e-12), key
        counts[group] += 1
    assert len(scales) == len(jax.tree.leaves(params))
    assert min(counts) >= 4


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_stages_count_from_the_head_whatever_their_number(stages):
    model = replk_jax.create_model(
        "replknet_31b", kernel_sizes=(5,) * stages, layers=(1,) * stages, channels=(8,) * stages
    )
    scales = layer_scales(abstract_variables(model)["params"], 0.5, "stage")
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
    params = abstract_variables(backbone)["params"]
    scales = layer_scales(params, 0.5, "stage")
    assert not {"norm", "head"} & set(params)
    for stage in range(4):
        assert set(jax.tree.leaves(scales[f"stages_{stage}"])) == {0.5 ** (4 - stage)}


def test_a_step_by_stage():
    """One step of SGD, which is the learning rate times the gradient, here 1."""
    paths = [("stem_3", "conv"), ("stages_0", "blocks_0"), ("transitions_0", "0"),
             ("stages_1", "blocks_3"), ("norm", "bn"), ("head", "linear")]  # fmt: skip
    params = {first: {second: {"kernel": jnp.ones((2, 2))}} for first, second in paths}
    recipe = {
        **common.sgd_on_imagenet().optimizer,
        "weight_decay": 0.0,
        "layer_decay": 0.4,
        "layer_decay_by": "stage",
    }
    optimizer = make_optimizer(recipe, lambda step: 0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    actual = [-float(updates[first][second]["kernel"][0, 0]) for first, second in paths]
    np.testing.assert_allclose(actual, [0.0064, 0.016, 0.016, 0.04, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("by", ["layer", "stage"])
@pytest.mark.parametrize("name", ["repvgg_a0", "mobilenet_v2", "resnet_101"])
def test_layer_decay_is_replknets(name, by):
    params = abstract_variables(replk_jax.create_model(name))["params"]
    recipe = {**RECIPE, "layer_decay": 0.7, "layer_decay_by": by}
    optimizer = make_optimizer(recipe, lambda step: 0.1)
    with pytest.raises(RunError, match=r"layer_decay is for RepLKNets .* leave it 1"):
        jax.eval_shape(optimizer.init, params)


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
    assert all(jax.tree.leaves(decayed(mobilenet_v2.get_config().optimizer, params)))


@pytest.mark.parametrize("norm", [0.5, 20.0])
def test_clipping_cuts_the_norm_of_the_whole_gradient(norm):
    """By SGD without momentum, whose step is the gradient: 13 long, or as long as it may be."""
    recipe = {
        **repvgg_imagenet.get_config().optimizer,
        "clip_norm": norm,
        "momentum": 0.0,
        "weight_decay": 0.0,
    }
    grads = {"kernel": jnp.full((2, 2), 6.0), "bias": jnp.array([-5.0])}
    optimizer = make_optimizer(recipe, lambda step: 1.0)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    factor = min(1, norm / 13)
    for name, grad in grads.items():
        np.testing.assert_allclose(updates[name], -factor * grad, rtol=1e-6)
