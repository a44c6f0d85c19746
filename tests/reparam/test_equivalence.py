"""Every registered family and variant: the merged structure is the training-time one.

A network cannot be registered without passing here: the cases come from the registry, and
a family without a miniature in tests/miniatures.py fails.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import check_equivalence, reparameterize
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.variables import abstract_variables
from tests.helpers import random_images, random_variables
from tests.miniatures import ALIKE, every_day, registered, repvgg_variants

VARIANTS = repvgg_variants()
del VARIANTS["repvgg relu_in_branches"]  # which cannot be merged
DILATED = RepLKNetArchitecture(
    (9, 7), (1, 1), (8, 12), small_kernel=None, dilated_branches=((5, 1), (3, 2), (3, 3))
)
CASES = {
    **{name: (architecture, {}) for name, architecture in registered().items()},
    **{name: (architecture, {}) for name, architecture in VARIANTS.items()},
    "replknet with dilated branches": (DILATED, {}),
    "replknet of output stride 4": (
        dataclasses.replace(DILATED, small_kernel=5, dilated_branches=((3, 2),)),
        {"out_indices": (0, 1), "output_stride": 4, "norm_intermediate_features": True},
    ),
    "repvgg with groups by layer": (
        RepVGGArchitecture((2, 1), (8, 8, 12), groups=(1, 2, 1, 4)),
        {"output_stride": 8},
    ),
    "mobilenet_v2 of output stride 8": (
        registered()["mobilenet_v2_13_reparam"],
        {"out_indices": (0, 1), "output_stride": 8},
    ),
}


def make(case, **fields):
    """With the implementation that compiles fastest, since merging depends on none."""
    architecture, own_fields = CASES[case]
    fields |= {"num_classes": 4, "implementation": "xla", **own_fields}
    return replk_jax.create_model(architecture, **fields)


FAMILIES = {"replknet_31b", "repvgg_a0", "mobilenet_v2", "resnet_18"}  # one network of each


@pytest.mark.parametrize("case", every_day(CASES))
def test_every_network(case):
    """Outputs within 1e-9 of the largest in float64: the identities are exact. And the transform
    is one of JAX's: pure, and fit for jit, vmap, grad."""
    with jax.enable_x64(True):
        model = make(case, dtype=jnp.float64, param_dtype=jnp.float64)
        variables = random_variables(model)
        images = random_images(model, size=(32, 21))
        with jax.default_matmul_precision("highest"):  # as the check has it, and compiles it
            outputs = jax.tree.leaves(jax.jit(model.apply)(variables, images))
        assert all(np.ptp(output, 0).max() > 1e-3 for output in outputs)  # images matter
        assert check_equivalence(model, variables, images).max_rel < 1e-9
        check_tree(model)
        check_transform(variables)


@pytest.mark.parametrize(
    "case",
    [
        case if case in FAMILIES else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in CASES
    ],
)
def test_float32(case):
    """Within 1e-4, which is rounding."""
    model = make(case)
    images = random_images(model, size=(32, 21))
    assert check_equivalence(model, random_variables(model), images).max_rel < 1e-4


def test_those_that_are_alike_exist():
    assert set(CASES) > ALIKE | FAMILIES


def check_tree(model):
    """The transform gives the variables that the merged model has, to the dtype."""
    for param_dtype in (model.param_dtype, jnp.bfloat16):
        typed = model.clone(param_dtype=param_dtype)
        merged = jax.eval_shape(reparameterize, abstract_variables(typed))
        chex.assert_trees_all_equal_shapes_and_dtypes(
            merged, abstract_variables(typed.clone(deploy=True))
        )


def check_transform(variables):
    once = jax.jit(reparameterize)
    merged = once(variables)
    chex.assert_trees_all_equal(once(merged), merged)

    # vmap: of two networks at once.
    def stack(*trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    other = jax.tree.map(lambda leaf: 1.5 * leaf, variables)
    chex.assert_trees_all_close(
        jax.jit(jax.vmap(reparameterize))(stack(variables, other)),
        stack(merged, once(other)),
        rtol=1e-10,
        atol=1e-12,
    )

    # grad: of a random combination of the results, along a random direction, against a central
    # difference of step h, whose error is of the order h^2, and its rounding of 1e-16 / h.
    rng, h = np.random.default_rng(1), 1e-5
    weights = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), merged)
    direction = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape), variables)
    direction["batch_stats"] = jax.tree.map(np.zeros_like, direction["batch_stats"])

    def dot(tree, other):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return sum(np.vdot(a, b) for a, b in pairs)

    def ahead(step):
        return once(jax.tree.map(lambda leaf, way: leaf + step * way, variables, direction))

    pull_back = jax.jit(lambda variables, weights: jax.vjp(reparameterize, variables)[1](weights))
    (gradient,) = pull_back(variables, weights)
    difference = (dot(ahead(h), weights) - dot(ahead(-h), weights)) / (2 * h)
    np.testing.assert_allclose(dot(gradient, direction), difference, rtol=1e-5, atol=1e-6)
