"""Every family through the same tools: files, predictions, features, counts."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import Checkpoint, Classifier, FeatureExtractor, Preprocessing, load, save
from replk_jax.checkpoint import load_into
from replk_jax.cli.main import main
from replk_jax.models import registry
from replk_jax.vision.base_preprocessing import normalize
from tests.helpers import random_variables
from tests.miniatures import miniature, repvgg_variants
from tests.vision.test_images import picture

PREPROCESSING = Preprocessing(32, crop_fraction=0.875, interpolation="bilinear")
NETWORKS = {
    "repvgg_d2se": (miniature(registry.ARCHITECTURES["repvgg_d2se"]), {}),
    "mobilenet_v2": (
        miniature(registry.ARCHITECTURES["mobilenet_v2_13_reparam"]), {"output_stride": 8},
    ),
    "resnet_101": (miniature(registry.ARCHITECTURES["resnet_101"]), {}),
    "resnet_18": (miniature(registry.ARCHITECTURES["resnet_18"]), {"output_stride": 8}),
    "not mergeable": (repvgg_variants()["repvgg relu_in_branches"], {}),
}  # fmt: skip


def network(name):
    architecture, fields = NETWORKS[name]
    model = replk_jax.create_model(architecture, num_classes=4, **fields)
    return Checkpoint(model, random_variables(model), PREPROCESSING)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive) if n == "resnet_18" else n for n in NETWORKS],
)
def test_from_a_file_to_predictions_and_features(name, tmp_path, capsys):
    saved = network(name)
    path = tmp_path / "network.safetensors"
    save(path, saved)
    again = load(path)
    assert again.model == saved.model
    chex.assert_trees_all_equal(again.variables, saved.variables)

    main(["inspect", str(path)])
    assert type(saved.model).__name__ in capsys.readouterr().out
    assert str(replk_jax.summary(again.model, 32)).count("\n") > 8

    images = [picture(40, 50, seed=seed) for seed in range(2)]
    pixels = np.stack([PREPROCESSING.pixels(image) for image in images])
    normalized = normalize(pixels, PREPROCESSING.mean, PREPROCESSING.std)
    expected, state = jax.jit(lambda v, x: again.model.apply(v, x, mutable=["intermediates"]))(
        again.variables, normalized
    )
    logits = Classifier.from_file(path, class_names=tuple("abcd")).logits(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    found = FeatureExtractor.from_file(path, maps=True)(images)
    (last,) = state["intermediates"][f"stage_{len(saved.model.architecture.layers) - 1}"]
    scale = np.abs(last).max()
    stages = [key for key in found if key != "features"]
    np.testing.assert_allclose(found[stages[-1]], last, rtol=0, atol=1e-4 * scale)
    head = again.variables["params"][saved.model.head_name]
    from_features = found["features"] @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(from_features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet_18"])
def test_what_is_dilated_says_so(name, tmp_path, capsys):
    save(tmp_path / "dilated.safetensors", network(name))
    main(["inspect", str(tmp_path / "dilated.safetensors")])
    assert "dilated for an output stride of 8" in capsys.readouterr().out


def test_weights_of_another_family_are_refused(tmp_path):
    save(tmp_path / "repvgg.safetensors", network("repvgg_d2se"))
    with pytest.raises(ValueError, match=r"repvgg\.safetensors: it holds a RepVGG, not a ResNet"):
        load_into(network("resnet_101").model, tmp_path / "repvgg.safetensors")


def test_what_cannot_be_merged(tmp_path, capsys):
    """Is counted as it is, and refused where a merged network is asked for."""
    saved = network("not mergeable")
    counts = replk_jax.summary(saved.model, 32)
    assert counts.merged == counts.training
    save(tmp_path / "relu.safetensors", saved)
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "relu.safetensors"), str(tmp_path / "x"), "--deploy"])
    assert "not linear" in capsys.readouterr().err


def test_a_merged_repvgg_for_the_official_code(tmp_path, capsys):
    saved = network("repvgg_d2se")
    merged = dataclasses.replace(
        saved,
        model=saved.model.clone(deploy=True),
        variables=jax.jit(replk_jax.reparameterize)(saved.variables),
    )
    save(tmp_path / "merged.safetensors", merged)
    main(["convert", str(tmp_path / "merged.safetensors"), str(tmp_path / "merged.pth")])
    assert "official merged structure" in capsys.readouterr().out
    model, variables = replk_jax.load_torch(tmp_path / "merged.pth")
    assert model == merged.model
    chex.assert_trees_all_equal(variables, merged.variables)
