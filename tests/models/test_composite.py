"""A backbone with heads fulfils the contract of every network."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import replk_jax
from replk_jax import Checkpoint, load, save
from replk_jax.export import export_model, plain_function
from replk_jax.models import registry
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.description import architecture_in_words, describe, from_description
from replk_jax.models.network import Network, register_network
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import for_inference
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import random_images, random_variables
from tests.miniatures import miniature
from tests.models.composite import ScoreHead, TinySegmenter, tiny_segmenter

RESNET = replk_jax.ResNetArchitecture((1, 1), (4, 8))


def test_variables_are_those_of_the_backbone_and_of_the_heads():
    model = tiny_segmenter()
    variables = abstract_variables(model)
    for collection, tree in abstract_variables(model.backbone).items():
        assert variables[collection]["backbone"] == tree
        assert set(variables[collection]) == {"backbone", "decode_head", "auxiliary_head"}


def test_outputs():
    model = tiny_segmenter(num_classes=3, backbone={"drop_path_rate": 0.5})
    variables, images = random_variables(model), random_images(model, batch=4)
    scores = jax.jit(model.apply)(variables, images)
    assert (scores.shape, scores.dtype) == ((4, 4, 4, 3), jnp.float32)

    @jax.jit
    def train(key):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    (trained, auxiliary), updates = train(jax.random.key(0))
    assert (trained.shape, auxiliary.shape) == ((4, 4, 4, 3), (4, 8, 8, 3))
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    for old, new in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates), strict=True
    ):
        assert np.any(old != new)
    (again, _), _ = train(jax.random.key(1))
    assert np.any(again != trained)  # stochastic depth of the backbone


def test_the_backbone_follows_the_network():
    model = tiny_segmenter(
        deploy=True, dtype=jnp.bfloat16, param_dtype=jnp.float16, implementation="xla", remat="full"
    )
    for name in ("deploy", "dtype", "param_dtype", "implementation", "remat"):
        assert getattr(model.backbone, name) == getattr(model, name)
    assert model.clone(deploy=False, remat=None).backbone.deploy is False
    assert "batch_stats" not in abstract_variables(model)
    leaves = jax.tree.leaves(abstract_variables(model))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float16)}
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    output = jax.eval_shape(model.apply, abstract_variables(model), images)
    assert output.dtype == jnp.bfloat16


def test_equality():
    model = tiny_segmenter()
    assert model == tiny_segmenter(backbone={"dtype": jnp.bfloat16})  # the network decides
    assert hash(model) == hash(tiny_segmenter())
    assert model != tiny_segmenter(backbone={"out_indices": (1, 0)})
    assert model != model.clone(deploy=True)
    assert model == model.clone(deploy=True).clone(deploy=False)


def test_description():
    backbone = {"norm_intermediate_features": True, "output_stride": 4, "drop_path_rate": 0.1}
    model = tiny_segmenter(
        num_classes=3, channels=7, deploy=True, param_dtype=jnp.dtype("bfloat16"), backbone=backbone
    )
    description = json.loads(json.dumps(describe(model)))
    assert description["family"] == "TinySegmenter"
    assert description["backbone"]["family"] == "RepLKNet"
    stored = model.backbone.clone(drop_path_rate=0.0)
    assert from_description(description) == model.clone(backbone=stored)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"family": "Elsewhere"}, "no network .* is registered; import the module .*: Elsewhere"),
        ({"backbone": describe(tiny_segmenter().backbone.clone(out_indices=None))}, "out_indices"),
        ({"num_classes": 10**40}, "num_classes cannot be 1000"),
        ({"channels": 1 << 25}, "channels cannot be"),
        ({"channels": 0}, "channels cannot be 0"),
        ({"novelty": 1}, "KeyError: 'novelty'"),
        ({"backbone": 3}, "backbone cannot be 3"),
        ({"backbone": {"family": "TinySegmenter"}}, "TinySegmenter is no Backbone"),
        ({"backbone": {"family": "ResNet"}}, "architecture"),
        ({"num_classes": -1}, "num_classes cannot be -1"),
    ],
)
def test_descriptions_that_are_refused(change, reason):
    with pytest.raises(ValueError, match=f"describes no model of this version: .*{reason}"):
        from_description({**describe(tiny_segmenter()), **change})


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match=r"TinySegmenter already, in tests\.models\.composite"):
        register_network(type("TinySegmenter", (Network,), {"__module__": "elsewhere"}))
    assert type(from_description(describe(tiny_segmenter()))) is TinySegmenter


@pytest.mark.parametrize("backbone", [None, tiny_segmenter(), 3], ids=repr)
def test_a_backbone_of_another_type(backbone):
    with pytest.raises(TypeError, match=r"TinySegmenter needs a backbone.*out_indices=.*; got "):
        TinySegmenter(backbone=backbone)


class PooledHead(CompositeNetwork, kw_only=True):
    """A linear layer on the features of the backbone."""

    needs_feature_maps = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (N, H, W, 3) to (N, 2), with a learned buffer."""
        self.check_call(x)
        offset = self.variable("buffers", "offset", jnp.ones, (2,))
        return nn.Dense(2, name="head")(self.backbone(x, train)) + offset.value[None]


def test_backbones_have_feature_maps_unless_the_network_needs_none():
    backbone = replk_jax.create_model(RESNET, num_classes=None)
    with pytest.raises(ValueError, match="TinySegmenter needs the feature maps of its backbone"):
        TinySegmenter(backbone=backbone).check_fields()
    PooledHead(backbone=backbone).check_fields()


def test_other_collections_are_not_merged():
    backbone = replk_jax.create_model(RESNET, num_classes=None)
    model = PooledHead(backbone=backbone)
    variables, images = random_variables(model), random_images(model)
    merged_model, merged = for_inference(model, variables)
    assert merged.keys() == {"params", "buffers"}
    np.testing.assert_array_equal(merged["buffers"]["offset"], variables["buffers"]["offset"])
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(jax.jit(merged_model.apply)(merged, images), expected, atol=1e-4)


def test_in_words():
    """The fields of the network and of its backbone with the same name are both there."""
    model = tiny_segmenter(channels=7)
    assert architecture_in_words(model) == (
        f"channels 7, backbone RepLKNet ({architecture_in_words(model.backbone)})"
    )


@pytest.mark.parametrize("family", registry.FAMILIES, ids=lambda family: family.name)
def test_merged(family):
    """Both structures agree, and the merged one has no statistics."""
    architecture = miniature(next(iter(family.architectures.values())))
    model = tiny_segmenter(architecture, backbone={"out_indices": (0, -1)})
    variables, images = random_variables(model), random_images(model, size=33)
    merged = jax.eval_shape(replk_jax.reparameterize, variables)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(
        lambda x: (x.shape, x.dtype), dict(abstract_variables(model.clone(deploy=True)))
    )
    assert replk_jax.check_equivalence(model, variables, images).max_rel < 1e-4


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_saved_and_loaded(tmp_path, name):
    model = tiny_segmenter()
    network = Checkpoint(model, random_variables(model), Preprocessing(32), tuple("abcde"))
    assert network.name is None
    save(tmp_path / name, network)
    loaded = load(tmp_path / name)
    assert loaded.model == model
    assert (loaded.preprocessing, loaded.class_names) == (Preprocessing(32), tuple("abcde"))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)


def test_exported():
    model = tiny_segmenter()
    variables, images = random_variables(model), random_images(model)
    merged, weights = for_inference(model, variables)
    expected = jax.jit(merged.apply)(weights, images)
    program = export_model(model, variables, image_size=32, batch_size=2, platforms=["cpu"])
    plain = jax.jit(plain_function(model, variables))(images)
    for actual in (program.call(images), plain):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_summary_by_hand():
    """Of 32 x 32 images, on which the stages of a ResNet have 8 x 8 and 4 x 4 pixels."""
    model = tiny_segmenter(RESNET, num_classes=3, channels=6)
    counts = replk_jax.summary(model, 32)
    parts = {part.name: part for part in counts.parts}
    assert [*parts] == ["conv1", "layer1", "layer2", "decode_head", "auxiliary_head"]
    backbone = replk_jax.summary(model.backbone, 32)
    assert counts.parts[:3] == backbone.parts

    decode, auxiliary = parts["decode_head"], parts["auxiliary_head"]
    inputs, pixels = 4 * 8, 4 * 4
    assert decode.shape == (4, 4, 3)
    assert decode.training.parameters == 9 * inputs * 6 + 2 * 6 + 6 * 3 + 3
    assert decode.merged.parameters == 9 * inputs * 6 + 6 + 6 * 3 + 3
    macs = pixels * (9 * inputs * 6 + 6 * 3)
    assert decode.training.convolution == decode.merged.convolution == macs
    assert decode.training.batch_norm_elements == pixels * 6
    assert decode.merged.batch_norm_elements == counts.training.linear == 0
    # Inference does not run the auxiliary head.
    assert auxiliary.training.convolution == 8 * 8 * (9 * 16 * 6 + 6 * 3)
    assert auxiliary.merged.convolution == auxiliary.merged.parameters == 0
    assert counts.training.convolution == (
        backbone.training.convolution + macs + auxiliary.training.convolution
    )


class SharedHead(CompositeNetwork, kw_only=True):
    """One head for the feature maps of two stages, as detectors have it."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """Maps (N, H, W, 3) to scores of both stages."""
        head = ScoreHead(channels=6, num_classes=3, **self.common_kwargs(), name="bbox_head")
        return tuple(head(feature_map, train) for feature_map in self.backbone(x, train))


def test_summary_of_a_shared_head():
    """It has its parameters once, and computes for every feature map."""
    architecture = replk_jax.ResNetArchitecture((1, 1), (4, 4))
    backbone = replk_jax.create_model(architecture, num_classes=None, out_indices=(0, 1))
    head = replk_jax.summary(SharedHead(backbone=backbone), 32).parts[-1]
    assert head.name == "bbox_head"
    assert head.merged.parameters == 9 * 16 * 6 + 6 + 6 * 3 + 3
    assert head.merged.convolution == (8 * 8 + 4 * 4) * (9 * 16 * 6 + 6 * 3)


class OrdinaryHead(nn.Module):
    """Layers of Flax, and parameters of its own of the shapes of kernels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, 4 H, 4 W, 5)."""
        shape = (1, *x.shape[1:])
        x = x + self.param("rows", nn.initializers.zeros, shape)
        x = x + self.param("columns", nn.initializers.zeros, shape)
        x = nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x)
        x = nn.ConvTranspose(5, (2, 2), strides=(2, 2), use_bias=False)(x)
        x = nn.Conv(5, (3, 3), feature_group_count=5)(inputs=x)
        return nn.Dense(5)(x)


class OrdinaryHeads(CompositeNetwork, kw_only=True):
    """A head whose output is one of two, after a scale of the network itself."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Maps (N, H, W, 3) to what the head gives, and the feature map."""
        (feature_map,) = self.backbone(x, train)
        scale = self.param("scale", nn.initializers.ones, (8,))
        return OrdinaryHead(name="head")(feature_map * scale[None, None, None]), feature_map


def test_summary_of_ordinary_heads():
    """A feature map of 4 x 4 pixels and 8 channels, by hand."""
    architecture = replk_jax.ResNetArchitecture((1, 1), (4, 2))
    backbone = replk_jax.create_model(architecture, num_classes=None, out_indices=(1,))
    model = OrdinaryHeads(backbone=backbone)
    counts = replk_jax.summary(model, 32)
    parts = {part.name: part for part in counts.parts}
    embeddings = 2 * (4 * 4 * 8)
    kernels = (4 * 4 * 8 * 3 + 3) + (2 * 2 * 3 * 5) + (3 * 3 * 5 + 5) + (5 * 5 + 5)
    assert parts["head"].shape == (16, 16, 5)
    assert parts["head"].training.parameters == embeddings + kernels
    # In a transposed convolution every pixel of the input meets every tap.
    transposed = 4 * 4 * (4 * 4 * 8 * 3) + 8 * 8 * (2 * 2 * 3 * 5)
    assert parts["head"].training.convolution == transposed + 16 * 16 * (3 * 3 * 5)
    assert parts["head"].training.linear == 16 * 16 * 5 * 5
    assert parts["scale"].training.parameters == parts["scale"].merged.parameters == 8
    assert parts["scale"].training.convolution == 0
    for structure, count in ((model, counts.training), (model.clone(deploy=True), counts.merged)):
        leaves = jax.tree.leaves(abstract_variables(structure)["params"])
        assert count.parameters == sum(leaf.size for leaf in leaves)


def test_layers_are_those_of_the_backbone():
    model = tiny_segmenter()
    params = traverse_util.flatten_dict(abstract_variables(model)["params"])
    assert model.num_layers == model.backbone.num_layers == 14
    for path in params:
        if path[0] == "backbone":
            assert model.layer_of(path) == model.backbone.layer_of(path[1:])
            assert model.stage_of(path) == model.backbone.stage_of(path[1:])
        else:
            assert model.layer_of(path) == model.num_layers - 1
            assert model.stage_of(path) == model.num_stage_groups - 1 == 3
    with pytest.raises(ValueError, match="has no parameter stages_9/x"):
        model.layer_of(("backbone", "stages_9", "x"))


def test_what_the_backbone_gives():
    model = tiny_segmenter(RESNET, backbone={"output_stride": 8}, num_classes=0)
    assert model.in_channels == 3
    assert model.stage_channels == (16, 32)
    assert model.stage_strides == (4, 8)
    assert model.num_classes is None
    with pytest.raises(ValueError, match=r"TinySegmenter takes images of shape \(N, H, W, 3\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    wrong = tiny_segmenter(RESNET, backbone={"output_stride": 5})
    with pytest.raises(ValueError, match="output_stride must be 8, 16, 32 or None"):
        wrong.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.filterwarnings("error")
def test_is_tabulated():
    model, key = tiny_segmenter(), jax.random.key(0)
    text = model.tabulate({"params": key, "dropout": key}, jnp.zeros((2, 32, 32, 3)), train=True)
    parameters = jax.tree.leaves(abstract_variables(model)["params"])
    assert f"{sum(leaf.size for leaf in parameters):,}" in text


def test_no_classifier():
    model = tiny_segmenter()
    variables = random_variables(model)
    with pytest.raises(ValueError, match="Classifier takes a classifier; got a TinySegmenter"):
        replk_jax.Classifier(model, variables, Preprocessing(32))
    with pytest.raises(ValueError, match="takes a classifier or a backbone; got a TinySegmenter"):
        replk_jax.FeatureExtractor(model, variables, Preprocessing(32))
    assert not isinstance(model, Backbone)
