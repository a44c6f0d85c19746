"""FeatureExtractor: what a network makes of images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import FeatureExtractor, Preprocessing
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.models.backbone import FINAL_FEATURE_MAP
from tests.helpers import TINY, random_variables
from tests.vision.test_images import picture

pytestmark = pytest.mark.usefixtures("strict_promotion")

PREPROCESSING = Preprocessing(32, 0.8)

# Merging kernels and batch norms changes values of about 1 by float32's rounding.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def network(**fields):
    model = replk_jax.create_model(TINY, **{"num_classes": 7, **fields})
    return model, random_variables(model)


@pytest.fixture
def images():
    return [picture(40 + i, 50, seed=i) for i in range(3)]


def prepared(images):
    return jnp.stack([PREPROCESSING(image) for image in images])


@pytest.mark.parametrize("num_classes", [7, None])
def test_global_features_are_what_enters_the_classifier(images, num_classes):
    model, variables = network(num_classes=num_classes)
    expected = jax.jit(partial(model.apply, features=True))(variables, prepared(images))
    result = FeatureExtractor(model, variables, PREPROCESSING)(images)
    assert list(result) == ["features", "stage_0", "stage_1"]
    assert all(array.dtype == np.float32 for array in result.values())
    np.testing.assert_allclose(result["features"], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("norms", "dtype"),
    [
        (True, "float32"),
        (False, "bfloat16"),
        pytest.param(False, "float32", marks=pytest.mark.exhaustive),
        pytest.param(True, "bfloat16", marks=pytest.mark.exhaustive),
    ],
)
def test_stages_are_those_of_a_backbone(images, norms, dtype):
    model, variables = network(norm_intermediate_features=norms)
    backbone = model.clone(out_indices=(0, 1))
    expected = jax.jit(backbone.apply)(variables, prepared(images))
    model = model.clone(dtype=jnp.dtype(dtype))
    # Sixteen bits have 8 of precision, through some ten layers.
    tolerance = TOLERANCE if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    whole = FeatureExtractor(model, variables, PREPROCESSING, maps=True)(images)
    averages = FeatureExtractor(model, variables, PREPROCESSING)(images)
    for s, maps in enumerate(expected):
        assert whole[f"stage_{s}"].dtype == averages[f"stage_{s}"].dtype == np.float32
        np.testing.assert_allclose(whole[f"stage_{s}"], maps, **tolerance)
        np.testing.assert_allclose(averages[f"stage_{s}"], maps.mean((1, 2)), **tolerance)


def test_a_backbone_has_stages_alone(images):
    model, variables = network(num_classes=None, out_indices=(1,))
    (expected,) = jax.jit(model.apply)(variables, prepared(images))
    result = FeatureExtractor(model, variables, PREPROCESSING, maps=True)(images)
    assert list(result) == ["stage_0", "stage_1"]
    np.testing.assert_allclose(result["stage_1"], expected, **TOLERANCE)


def test_the_final_feature_map(images):
    """Of a MobileNet V2, whose last convolution is wider than the last stage."""
    architecture = replk_jax.MobileNetV2Architecture(
        (3,), layers=(1,), channels=(8,), strides=(1,), expansions=(1,), last_channels=20
    )
    model = replk_jax.create_model(architecture, num_classes=7)
    result = FeatureExtractor(model, random_variables(model), PREPROCESSING, maps=True)(images)
    assert result.keys() == {"features", "stage_0", FINAL_FEATURE_MAP}
    assert result[FINAL_FEATURE_MAP].shape == (3, 16, 16, model.final_channels) == (3, 16, 16, 20)
    means = result[FINAL_FEATURE_MAP].mean((1, 2))
    np.testing.assert_allclose(means, result["features"], **TOLERANCE)


def test_merged_networks(images):
    """Without a head nothing is lost; with one, the last norm is in it."""
    model, variables = network(num_classes=None)
    merged = jax.jit(replk_jax.reparameterize)(variables)
    whole = FeatureExtractor(model, variables, PREPROCESSING)(images)
    again = FeatureExtractor(model.clone(deploy=True), merged, PREPROCESSING)(images)
    for key in whole:
        np.testing.assert_allclose(again[key], whole[key], **TOLERANCE)
    model, variables = network()
    with pytest.raises(ValueError, match="merged classifier contains the final norm"):
        FeatureExtractor(
            model.clone(deploy=True), jax.jit(replk_jax.reparameterize)(variables), PREPROCESSING
        )


def test_from_file(images, tmp_path):
    path = tmp_path / "network.safetensors"
    model, variables = network()
    save(path, Checkpoint(model, variables, PREPROCESSING))
    expected = FeatureExtractor(model, variables, PREPROCESSING, maps=True)(images)
    actual = FeatureExtractor.from_file(path, maps=True, batch_size=2)(images)
    for key in expected:
        np.testing.assert_allclose(actual[key], expected[key], **TOLERANCE)
    merged = jax.jit(replk_jax.reparameterize)(variables)
    save(path, Checkpoint(model.clone(deploy=True), merged, PREPROCESSING), overwrite=True)
    with pytest.raises(ValueError, match=r"network\.safetensors: The merged classifier"):
        FeatureExtractor.from_file(path)
