"""What every family has in common, from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models import registry
from tests.helpers import random_images, random_variables
from tests.miniatures import miniature

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
    expected = features @ head["kernel"] + head["bias"]
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
