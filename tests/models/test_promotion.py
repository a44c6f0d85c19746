"""Every network where JAX neither broadcasts nor promotes dtypes implicitly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import check_equivalence, merge_branches, reparameterize
from replk_jax.models import registry
from replk_jax.vision.base_preprocessing import normalize
from tests.helpers import ONE_STAGE, random_images, random_variables
from tests.miniatures import miniature, registered, repvgg_variants

pytestmark = pytest.mark.usefixtures("strict_promotion")

# One of every family and every kind of block.
DIFFERENT = ("replknet_31b", "repvgg_d2se", "mobilenet_v2_13_reparam", "resnet_101")
ALIKE = {name: each for name, each in registered().items() if name not in DIFFERENT}
NETWORKS = {name: miniature(registry.ARCHITECTURES[name]) for name in DIFFERENT}
NETWORKS |= repvgg_variants() | ALIKE

DTYPES = [  # of the computation, and of the parameters
    (jnp.bfloat16, jnp.float32),
    pytest.param((jnp.bfloat16, jnp.bfloat16), marks=pytest.mark.exhaustive),
    pytest.param((jnp.float32, jnp.bfloat16), marks=pytest.mark.exhaustive),
]


def make(name, dtype, param_dtype):
    """With all that draws random numbers, and with recomputed activations."""
    model = replk_jax.create_model(
        NETWORKS[name], num_classes=4, dtype=dtype, param_dtype=param_dtype, remat="full"
    )
    rates = {"drop_path_rate": 0.5, "dropout_rate": 0.5}
    return model.clone(**{rate: p for rate, p in rates.items() if hasattr(model, rate)})


def gradients(model, variables, images):
    """Of a training step's logits, by the parameters and by the images; and the statistics."""

    def loss(params, images):
        logits, updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return logits.sum(), updated["batch_stats"]

    return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], images)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(d.__name__ for d in pair))
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive if n in ALIKE else ()) for n in NETWORKS],
)
def test_trains_and_is_merged(name, dtypes):
    model = make(name, *dtypes)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), dtypes[0])
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    (dparams, dimages), statistics = jax.eval_shape(
        lambda variables, images: gradients(model, variables, images), variables, images
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(
        (dparams, dimages, statistics), (variables["params"], images, variables["batch_stats"])
    )
    if not model.mergeable:
        return
    jax.eval_shape(merge_branches, variables)
    deployed = model.clone(deploy=True)
    merged = jax.eval_shape(reparameterize, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        merged, jax.eval_shape(deployed.init, jax.random.key(0), images)
    )
    logits = jax.eval_shape(deployed.apply, merged, images)
    assert logits == jax.eval_shape(model.apply, variables, images)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_structures_are_compared(dtype):
    """With values: 16 bits round the activations."""
    model = replk_jax.create_model(ONE_STAGE, num_classes=4, dtype=dtype)
    found = check_equivalence(model, random_variables(model), random_images(model))
    assert 0 < found.max_rel < (1e-4 if dtype == jnp.float32 else 0.1)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 3, 4), (4,)])
def test_pixels_are_normalized(shape):
    """Whatever the rank, in NumPy and in JAX."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    expected = (np.float64(pixels) / 255 - mean) / std
    for array in (pixels, jnp.asarray(pixels)):
        actual = normalize(array, mean, std)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
