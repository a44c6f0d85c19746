"""What every family has in common, from outside."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

import replk_jax
from replk_jax import RepLKNetArchitecture
from replk_jax.models import registry
from replk_jax.models.description import from_description
from replk_jax.models.variables import abstract_variables
from tests.helpers import ONE_STAGE, data_mesh, random_images, random_variables
from tests.miniatures import every_day, miniature, registered, repvgg_variants

FAMILIES = {
    family.network.__name__: miniature(next(iter(family.architectures.values())))
    for family in registry.FAMILIES
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
    (final,) = shown["final_feature_map"]
    np.testing.assert_allclose(final.mean((1, 2)), features, rtol=1e-5, atol=1e-5)
    assert shown.keys() == {*model.feature_names, "final_feature_map"}
    head = variables["params"][model.head_name]
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    stages = range(len(model.feature_names))
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


@pytest.mark.parametrize("family", FAMILIES)
def test_final_channels(family):
    model = make(family)
    features = jax.eval_shape(
        partial(model.apply, features=True),
        abstract_variables(model),
        jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    )
    assert features.shape == (1, model.final_channels)


def test_equal_networks_have_equal_hashes():
    model = replk_jax.create_model(ONE_STAGE, num_classes=4, out_indices=(0,), output_stride=4)
    same = [
        {"dtype": "float32", "param_dtype": np.dtype("float32")},
        {"dtype": np.float32, "param_dtype": "float32"},
        {"num_classes": np.int64(4), "output_stride": np.int32(4)},
        {"out_indices": np.array([0])},
    ]
    for fields in same:
        assert model.clone(**fields) == model
        assert hash(model.clone(**fields)) == hash(model)
    json.dumps(model.clone(**same[2]).describe())


@pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("out_indices", [0] * 100_000),
        ("num_classes", 10**40),
        ("num_classes", (1 << 24) + 1),
        ("output_stride", 10**30),
    ],
)
def test_descriptions_with_large_values(architecture, field, value):
    description = replk_jax.create_model(architecture).describe()
    with pytest.raises(ValueError, match=f"{field} cannot be"):
        from_description({**description, field: value})


@pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("field", ["channels", "in_channels"])
def test_architectures_with_large_values(architecture, field):
    value = getattr(architecture, field)
    largest = 10**30 if isinstance(value, int) else (10**30, *value[1:])
    with pytest.raises(ValueError, match=rf"{field} must be positive .*at most 16,777,216; got"):
        dataclasses.replace(architecture, **{field: largest})


def test_classes_are_bounded():
    model = replk_jax.create_model(ONE_STAGE, num_classes=1 << 24)
    model.check_fields()
    with pytest.raises(ValueError, match="num_classes must be positive, at most 16,777,216, or"):
        model.clone(num_classes=(1 << 24) + 1).check_fields()


# Of a miniature of every registered network, and of blocks that none of them has.
ARCHITECTURES = {**registered(), **repvgg_variants()}


@pytest.mark.parametrize("name", every_day(ARCHITECTURES))
def test_every_parameter_is_in_a_layer(name):
    """Layers and groups by stage rise from the image to the classifier, and none is empty."""
    model = replk_jax.create_model(ARCHITECTURES[name], num_classes=4)
    params = abstract_variables(model)["params"]
    order = [module for group in model.module_groups() for module in group.modules]
    assert {*params} == {*order}
    paths = sorted(traverse_util.flatten_dict(params), key=lambda path: order.index(path[0]))
    layers, stages = [*map(model.layer_of, paths)], [*map(model.stage_of, paths)]
    assert layers == sorted(layers)
    assert stages == sorted(stages)
    assert {*stages} == {*range(len(model.stage_channels) + 2)} == {*range(model.num_stage_groups)}
    assert (layers[0], layers[-1]) == (0, model.num_layers - 1)
    if not name.startswith("replknet"):  # which counts fourteen, whatever its depth
        assert {*layers} == {*range(model.num_layers)}
    for number in (model.layer_of, model.stage_of):
        with pytest.raises(ValueError, match="has no parameter other/kernel"):
            number(("other", "kernel"))


def test_layers_by_hand():
    """A layer for the stem, one for each block, and one for what follows."""
    resnet = replk_jax.create_model("resnet_50")
    assert resnet.num_layers == 1 + (3 + 4 + 6 + 3) + 1
    assert resnet.layer_of(("conv1", "conv", "kernel")) == 0
    assert resnet.layer_of(("layer1_0", "conv1", "conv", "kernel")) == 1
    assert resnet.layer_of(("layer3_5", "conv3", "bn", "scale")) == 3 + 4 + 6
    assert resnet.layer_of(("fc", "kernel")) == 17
    assert resnet.stage_of(("layer4_0", "downsample", "conv", "kernel")) == 4
    mobilenet = replk_jax.create_model("mobilenet_v2")
    assert mobilenet.num_layers == 19
    assert mobilenet.layer_of(("layer7_0", "conv_0", "conv", "kernel")) == 17
    assert mobilenet.layer_of(("conv2", "conv", "kernel")) == 18
    assert mobilenet.stage_of(("conv2", "conv", "kernel")) == 8
    pairs = replk_jax.create_model("repvgg_b0", block="residual")
    assert pairs.num_layers == 1 + (2 + 3 + 8 + 1) + 1


@pytest.mark.parametrize(
    ("path", "layer", "stage"),
    [
        ("stem_3/conv/kernel", 0, 0),
        ("stages_0/blocks_3/pw2/bn/bias", 1, 1),
        ("transitions_0_1/conv/kernel", 1, 1),
        ("stages_1/blocks_0/prelkb_bn/scale", 2, 2),
        ("stages_2/blocks_0/pw1/conv/kernel", 3, 3),
        ("stages_2/blocks_3/pw1/conv/kernel", 3, 3),
        ("stages_2/blocks_4/pw1/conv/kernel", 4, 3),
        ("stages_2/blocks_35/pw1/conv/kernel", 11, 3),
        ("stages_2/norm/scale", 11, 3),
        ("transitions_2_0/conv/kernel", 11, 3),
        ("stages_3/blocks_0/pw1/conv/kernel", 12, 4),
        ("norm/scale", 13, 5),
        ("head/kernel", 13, 5),
    ],
)
def test_the_fourteen_layers_of_replknet(path, layer, stage):
    """As the official code numbers them."""
    model = replk_jax.create_model("replknet_31b")
    assert model.num_layers == 14
    assert model.layer_of(tuple(path.split("/"))) == layer
    assert model.stage_of(tuple(path.split("/"))) == stage


def test_replknets_of_five_stages_have_no_layers():
    model = replk_jax.create_model(RepLKNetArchitecture((3,) * 5, (1,) * 5, (4,) * 5, None))
    with pytest.raises(ValueError, match="more than four stages"):
        model.layer_of(("stages_4", "blocks_0", "pw1", "conv", "kernel"))
    assert model.stage_of(("stages_4", "blocks_0", "pw1", "conv", "kernel")) == 5


@pytest.mark.parametrize("name", every_day(ARCHITECTURES))
def test_channels_and_strides_of_the_stages(name):
    """Those that the feature maps have, with strides and with dilation in their place."""
    for output_stride in (None, 8):
        model = replk_jax.create_model(
            ARCHITECTURES[name], out_indices=(0, 1), output_stride=output_stride
        )
        assert model.in_channels == 3
        assert model.feature_names[:2] == ("stage_0", "stage_1")
        images = jax.ShapeDtypeStruct((1, 64, 128, 3), jnp.float32)
        maps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        for feature_map, channels, stride in zip(
            maps, model.stage_channels, model.stage_strides, strict=False
        ):
            assert feature_map.shape == (1, 64 // stride, 128 // stride, channels)


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
