"""Frozen stages, and batch norms that use their running statistics during training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import replk_jax
from configs import common
from tests.helpers import data_mesh, random_images, random_variables
from tests.models.composite import tiny_segmenter
from train.engine.checkpoints import Checkpoints
from train.engine.config import build_freezing, build_optimizer
from train.engine.freezing import Freezing
from train.engine.optimizer import make_optimizer
from train.engine.step import TrainState
from train.errors import RunError

TWO_STAGES = replk_jax.RepLKNetArchitecture((3, 3), (1, 1), (4, 4), small_kernel=None)
create = functools.partial(replk_jax.create_model, TWO_STAGES, num_classes=3)


def in_frozen_part(path):
    """By name: the stem, and stage 0 with the transition after it."""
    return path[0].startswith(("stem", "stages_0", "transitions_0"))


def forward(model, freezing, variables, images, train=True, seed=0):
    """The outputs, and the running statistics after it."""
    with freezing.eval_mode():
        outputs, updates = model.apply(
            {**variables, "params": freezing.constant(variables["params"])},
            images,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )
    return outputs, updates["batch_stats"]


def gradients(model, freezing, variables, images, **options):
    """Of a sum of the outputs with weights; with what `forward` returns."""

    def loss(params):
        result = forward(model, freezing, {**variables, "params": params}, images, **options)
        leaves = jax.tree.leaves(result[0])
        weighted = [leaf.ravel() @ jnp.linspace(-1, 1, leaf.size) for leaf in leaves]
        return sum(weighted), result

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize("remat", [None, "full"])
def test_batch_norms_in_eval_mode(remat):
    """Without stochastic depth: outputs and gradients of train=False, norms being constants."""
    model = create(remat=remat)
    variables, images = random_variables(model), random_images(model, size=16)
    frozen, free = Freezing(model, batch_norm=True), Freezing(model)
    grads, (outputs, statistics) = gradients(model, frozen, variables, images)
    expected_grads, (expected, _) = gradients(model, free, variables, images, train=False)
    assert_close(outputs, expected)
    assert_close(grads, expected_grads)
    assert_equal(statistics, variables["batch_stats"])
    assert all(np.any(grad) for grad in jax.tree.leaves(grads))


def test_stochastic_depth_stays_on_while_batch_norms_are_in_eval_mode():
    model = create(drop_path_rate=0.5)
    variables, images = random_variables(model), random_images(model, batch=8, size=16)
    frozen = Freezing(model, batch_norm=True)
    run = jax.jit(functools.partial(forward, model, frozen), static_argnames="train")
    first, statistics = run(variables, images, seed=0)
    second, _ = run(variables, images, seed=1)
    evaluated, _ = run(variables, images, train=False)
    assert np.abs(first - evaluated).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3
    assert_equal(statistics, variables["batch_stats"])


def test_frozen_stages_run_in_eval_mode():
    """Their feature maps are those of eval mode, stochastic depth included; the next are not."""
    model = create(drop_path_rate=0.5, out_indices=(0, 1))
    variables, images = random_variables(model), random_images(model, batch=4, size=16)
    run = jax.jit(functools.partial(forward, model), static_argnums=0, static_argnames="train")
    (first, second), statistics = run(Freezing(model, stages=1), variables, images)
    (evaluated, other), _ = run(Freezing(model), variables, images, train=False)
    assert_close(first, evaluated)
    assert np.abs(second - other).max() > 1e-3
    before = flatten_dict(variables["batch_stats"])
    for path, after in flatten_dict(statistics).items():
        assert np.any(after != before[path]) != in_frozen_part(path), path


def test_frozen_parameters_have_no_gradient():
    model = create()
    params = random_variables(model)["params"]

    def loss(params):
        leaves = jax.tree.leaves(Freezing(model, stages=1).constant(params))
        return sum(jnp.sum(leaf**2) for leaf in leaves)

    grads, before = flatten_dict(jax.grad(loss)(params)), flatten_dict(params)
    for path, grad in grads.items():
        np.testing.assert_array_equal(grad, 0 if in_frozen_part(path) else 2 * before[path])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_parameters_stay_bit_identical(name):
    """With weight decay, clipping and layer decay, whatever their gradients."""
    names = ("stem_0", "stages_0", "transitions_0_1", "stages_1", "norm", "head")
    params = {name: {"kernel": jnp.arange(1.0, 5).reshape(2, 2) / 3} for name in names}
    recipe = common.get_config().optimizer
    recipe.update(name=name, weight_decay=0.5, clip_norm=1.0, layer_decay=0.9)
    optimizer = build_optimizer(recipe, lambda step: 0.1, Freezing(create(), stages=1))
    state, after = optimizer.init(params), params
    for _ in range(3):
        updates, state = optimizer.update(params, state, after)
        after = jax.tree.map(jnp.add, after, updates)
    kept = {name for name in names if np.array_equal(*(p[name]["kernel"] for p in (params, after)))}
    assert kept == {"stem_0", "stages_0", "transitions_0_1"}


def test_frozen_parameters_do_not_count_in_the_clipped_norm():
    """As in PyTorch, where they have no gradient: (6, 8) is 10 long, cut to 5."""
    grads = {
        "stem_0": {"kernel": jnp.full((1, 1), 100.0)},
        "stages_1": {"kernel": jnp.full((1, 1), 6.0)},
        "head": {"kernel": jnp.full((1, 1), 8.0)},
    }
    optimizer = make_optimizer("sgd", lambda step: 1.0, momentum=0.0, clip_norm=5.0)
    optimizer = Freezing(create(), stages=0).optimizer(optimizer)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    actual = [float(updates[name]["kernel"][0, 0]) for name in grads]
    np.testing.assert_allclose(actual, [0, -3, -4], rtol=1e-6)


def test_the_state_of_frozen_parameters_is_neither_kept_nor_saved(tmp_path):
    model = create()
    optimizer = Freezing(model, stages=1).optimizer(make_optimizer("adamw", lambda step: 0.1))
    variables = random_variables(model)
    moments = jax.tree_util.tree_leaves_with_path(optimizer.init(variables["params"]))
    kept = {
        tuple(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))[1:]
        for keys, _ in moments
    }
    trained = {path for path in flatten_dict(variables["params"]) if not in_frozen_part(path)}
    assert {path for path in kept if path} == trained

    def state(value):
        filled = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), variables)
        state = TrainState(
            jnp.zeros((), jnp.int32), **filled, opt_state=optimizer.init(filled["params"])
        )
        replicated = jax.sharding.NamedSharding(data_mesh(1), jax.sharding.PartitionSpec())
        return jax.device_put(jax.tree.map(lambda leaf: leaf + value, state), replicated)

    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        checkpoints.save(1, state(2))
        checkpoints.wait()
        restored, _ = checkpoints.restore_latest(state(0))
    assert_equal(restored.opt_state, state(2).opt_state)


def test_nothing_is_frozen_by_default():
    """The optimizer is the given one, whose state older checkpoints have."""
    model = create()
    freezing = build_freezing(common.get_config(), model)
    optimizer = make_optimizer("adamw", lambda step: 0.1)
    assert freezing.optimizer(optimizer) is optimizer
    assert not freezing.is_frozen(("stem_0", "conv", "kernel"))


@pytest.mark.parametrize("stages", [2, 3])
def test_all_stages_can_be_frozen_but_no_more(stages):
    config = common.get_config()
    config.freeze.stages = stages
    if stages == 3:
        with pytest.raises(RunError, match=r"config\.freeze\.stages = 3 .* the 2 stages"):
            build_freezing(config, create())
        return
    freezing = build_freezing(config, create())
    params = flatten_dict(random_variables(create())["params"])
    trained = {path[0] for path in params if not freezing.is_frozen(path)}
    assert trained == {"norm", "head"}


def test_norms_of_new_heads_are_trained():
    """`batch_norm` is about the backbone of a network with heads, as mmdetection's `norm_eval`."""
    model = tiny_segmenter()
    variables = random_variables(model)
    freezing = Freezing(model, batch_norm=True)
    _, batch_stats = forward(model, freezing, variables, random_images(model))
    before, after = flatten_dict(variables["batch_stats"]), flatten_dict(batch_stats)
    changed = {path[0] for path in before if np.any(before[path] != after[path])}
    assert changed == {"decode_head", "auxiliary_head"}
