"""What every family has in common, from outside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import replk_jax
from replk_jax.models import registry
from replk_jax.models.variables import abstract_variables
from tests.helpers import ONE_STAGE, data_mesh, random_images, random_variables
from tests.miniatures import miniature, repvgg_variants

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAMILIES = {
    family.__name__: miniature(next(a for a in registry.ARCHITECTURES.values() if type(a) is kind))
    for kind, family in registry.FAMILIES.items()
}


def make(family, **fields):
    return replk_jax.create_model(FAMILIES[family], num_classes=4, **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_classifier_features_and_maps_agree(family):
    """The classifier on the features gives the logits; the maps of a backbone are those that
    the stages show."""
    model = make(family)
    variables, images = random_variables(model), random_images(model)

    @jax.jit
    def run(variables):
        logits, state = model.apply(variables, images, mutable=["intermediates"])
        return logits, model.apply(variables, images, features=True), state["intermediates"]

    logits, features, shown = run(variables)
    head = variables["params"][model.head_name]
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    stages = range(len(model.architecture.layers))
    backbone = model.clone(out_indices=tuple(stages))
    wanted = jax.eval_shape(backbone.init, jax.random.key(0), images)

    def prune(tree, like):
        return {k: prune(tree[k], like[k]) if isinstance(like[k], dict) else tree[k] for k in like}

    pruned = prune(variables, wanted)
    if family == "RepLKNet":  # the last map leaves before the final norm
        assert "norm" not in pruned["params"]
    maps = jax.jit(backbone.apply)(pruned, images)
    for s in stages:
        np.testing.assert_allclose(maps[s], shown[f"stage_{s}"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"RepLKNet"}))
def test_remat_changes_no_gradient(family):
    """Recomputed activations are the same; their sums may be taken in another order. RepLKNet's
    test has stochastic depth besides."""
    model = make(family, implementation="xla")
    variables, images = random_variables(model), random_images(model, size=16)

    def gradient(model):
        def loss(params):
            return jnp.sum(model.apply({**variables, "params": params}, images) ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, recomputed = gradient(model), gradient(model.clone(remat="full"))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        plain,
        recomputed,
    )
    text = str(jax.make_jaxpr(lambda p: make(family, remat="full").apply(p, images))(variables))
    assert "remat" in text or "checkpoint" in text


@pytest.mark.parametrize(
    "architecture",
    [*FAMILIES.values(), *repvgg_variants().values()],
    ids=[*FAMILIES, *repvgg_variants()],
)
def test_is_tabulated_without_a_warning(architecture):
    """Flax records what wrapped methods return, and JAX warns of what is no array."""
    model = replk_jax.create_model(architecture, num_classes=4)
    key, images = jax.random.key(0), jnp.zeros((2, 32, 32, 3))
    text = model.tabulate({"params": key, "dropout": key}, images, train=True)
    parameters = jax.tree.leaves(abstract_variables(model)["params"])
    assert f"{sum(leaf.size for leaf in parameters):,}" in text


def test_initializes_without_a_warning():
    model = replk_jax.create_model(ONE_STAGE, num_classes=4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))


def gradients(model, variables, images):
    """Of a training step, and its logits."""

    def loss(params, images):
        variables_now, rngs = {**variables, "params": params}, {"dropout": jax.random.key(0)}
        logits, _ = model.apply(
            variables_now, images, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return jnp.sum(logits**2), logits

    return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], images)


@pytest.mark.exhaustive  # tests/models/test_layers.py has a layer
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_without_jit_on_several_devices(family):
    """As `JAX_DISABLE_JIT=1` has it: the same logits and gradients, of images that are sharded."""
    mesh, model = data_mesh(4), make(family)
    variables, images = random_variables(model), random_images(model, batch=4, size=16)
    expected = jax.jit(partial(gradients, model))(variables, images)
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    with jax.disable_jit():
        replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        actual = gradients(model, replicated, sharded)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_mistakes_are_named(family):
    model, images = make(family), jnp.zeros((1, 32, 32, 3))
    cases = [
        (model, images[..., :2], {}, rf"{family} takes images of shape \(N, H, W, 3\)"),
        (model, images.astype(jnp.uint8), {}, f"{family} takes normalised floating-point"),
        (model.clone(num_classes=-1), images, {}, "num_classes must be positive"),
        (model.clone(out_indices=(9,)), images, {}, r"out_indices names stages \[9\]"),
        (model.clone(out_indices=(0,)), images, {"features": True}, "has no features"),
    ]
    for model, images, fields, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            jax.eval_shape(lambda m=model, i=images, f=fields: m.init(jax.random.key(0), i, **f))
