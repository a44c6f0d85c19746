"""Segmentation networks: every head on every family, in all that users do with a network."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import SegmentationNetwork, create_model, create_segmenter
from replk_jax.checkpoint import Checkpoint, load, save
from replk_jax.export import export_model, plain_function
from replk_jax.models import registry
from replk_jax.models.description import architecture_in_words, describe, from_description
from replk_jax.models.variables import abstract_image, abstract_variables, by_path
from replk_jax.reparam import for_inference
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.registry import DECODE_HEADS
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import TINY, assert_equal_in_float64, random_images, random_variables
from tests.miniatures import miniature
from tests.models.test_accumulation import reductions_in_16_bits
from tests.segmentation import reference

FAMILIES = {
    family.name: miniature(next(iter(family.architectures.values())))
    for family in registry.FAMILIES
}
EVERY_HEAD = pytest.mark.parametrize("head", DECODE_HEADS)


def segmenter(head, architecture=TINY, **fields):
    """A small network, with the dilations of small feature maps."""
    if head.startswith("deeplab"):
        fields.setdefault("dilations", (1, 2, 3))
    return create_segmenter(
        head, architecture, 5, **{"channels": 6, "auxiliary_channels": 4, **fields}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_training_time(family):
    """All heads in one program; the bounds are those of the networks of the families."""
    models = {head: segmenter(head, FAMILIES[family]) for head in DECODE_HEADS}
    variables = {head: random_variables(model) for head, model in models.items()}
    images = random_images(models["fcn"], 1, (33, 40))

    @jax.jit
    def run(variables, images):
        outputs = {}
        for head, model in models.items():
            merged = replk_jax.reparameterize(variables[head])
            expected = model.apply(variables[head], images)
            outputs[head] = expected, model.clone(deploy=True).apply(merged, images)
        return outputs

    with jax.default_matmul_precision("highest"):
        outputs = run(variables, images)
    for head, (expected, actual) in outputs.items():
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error < 1e-4, (head, error)


@EVERY_HEAD
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_leaves_no_batch_norm(family, head):
    model = segmenter(head, FAMILIES[family])
    merged = jax.eval_shape(replk_jax.reparameterize, abstract_variables(model))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        merged, abstract_variables(model.clone(deploy=True))
    )
    assert merged.keys() == {"params"}
    leaves = {path.rpartition("/")[2] for path in by_path(merged["params"])}
    assert leaves <= {"kernel", "bias"}


@EVERY_HEAD
def test_sizes_of_the_logits(head):
    """That of the first feature map for UPerNet and DeepLabv3+, of the last for the others."""
    model = segmenter(head)
    variables = abstract_variables(model)
    expected = (10, 9) if head in ("upernet", "deeplabv3plus") else (5, 5)
    images = jax.ShapeDtypeStruct((2, 37, 33, 3), jnp.float32)
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, *expected, 5), jnp.float32)

    def train(variables, images):
        return model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    (decode, auxiliary), _ = jax.eval_shape(train, variables, images)
    assert (decode.shape, auxiliary.shape) == ((2, *expected, 5), (2, 10, 9, 5))
    without, left = model.without_auxiliary_head(variables)
    assert abstract_variables(without) == left


def test_training_without_auxiliary_head():
    model = segmenter("fcn", auxiliary_channels=None)
    variables = abstract_variables(model)
    rngs = {"dropout": jax.random.key(0)}
    (logits, auxiliary), _ = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs),
        variables,
        abstract_image(model, (64, 64)),
    )
    assert logits.shape == (1, 8, 8, 5)
    assert auxiliary is None


def test_dropout_drops_channels():
    """A channel is dropped at every pixel of an image, or at none."""
    head = FCNHead(channels=64, num_classes=64, num_convs=0, concat_input=False, dropout_rate=0.5)
    x = jnp.ones((2, 3, 3, 64))
    params = {"conv_seg": {"kernel": jnp.eye(64)[None, None], "bias": jnp.zeros(64)}}
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(head.apply({"params": params}, [x], train=True, rngs=rngs))
    assert set(np.unique(y)) == {0, 2}
    assert (y == y[:, :1, :1]).all()
    assert (y[0, 0, 0] != y[1, 0, 0]).any()


# --- Against definitions in float64 ------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@EVERY_HEAD
def test_heads_by_definition(head, align_corners):
    """On feature maps of odd sizes, which are no multiples of each other."""
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, *size, 4)) for size in ((11, 13), (6, 7), (3, 4))]
    module = DECODE_HEADS[head](
        channels=4, num_classes=3, align_corners=align_corners,
        dtype=jnp.float64, param_dtype=jnp.float64,
    )  # fmt: skip
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in maps]
        shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
        variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes)
        actual = jax.jit(module.apply)(variables, inputs)
    expected = getattr(reference.Head(variables, align_corners), head)(maps)
    assert_equal_in_float64(actual, expected)


def test_normed_feature_maps_of_odd_sizes():
    """UPerNet on a backbone like XL's: the norms act on what the head sees, not on the stages."""
    architecture = replk_jax.RepLKNetArchitecture(
        (7, 5, 3), (1, 1, 1), (4, 6, 8), small_kernel=None, dw_ratio=1.5
    )
    with jax.enable_x64(True):
        model = segmenter(
            "upernet", architecture, dtype=jnp.float64, param_dtype=jnp.float64,
            backbone_options={"norm_intermediate_features": True},
        )  # fmt: skip
        variables, images = random_variables(model), random_images(model, 1, (77, 101))
        logits = jax.jit(model.apply)(variables, images)
        plain = model.backbone.clone(norm_intermediate_features=False)
        backbone = {name: dict(tree["backbone"]) for name, tree in variables.items()}
        norms = []
        for s in range(3):
            stages = {name: dict(tree[f"stages_{s}"]) for name, tree in backbone.items()}
            norms.append([stages[name].pop("norm") for name in ("params", "batch_stats")])
            for name, tree in backbone.items():
                tree[f"stages_{s}"] = stages[name]
        feature_maps = jax.jit(plain.apply)(backbone, images)
    assert [x.shape[1:3] for x in feature_maps] == [(20, 26), (10, 13), (5, 7)]
    normed = [
        reference.batch_norm(np.asarray(x), *norm)
        for x, norm in zip(feature_maps, norms, strict=True)
    ]
    head = {name: tree["decode_head"] for name, tree in variables.items()}
    assert_equal_in_float64(logits, reference.Head(head, False).upernet(normed))


# --- 16 bits -----------------------------------------------------------------------------


@EVERY_HEAD
@pytest.mark.parametrize(
    "param_dtype", [pytest.param(jnp.float32, marks=pytest.mark.exhaustive), jnp.bfloat16]
)
def test_16_bits(head, param_dtype):
    """Implicit promotion is an error; nothing is summed in 16 bits, in either pass."""
    model = segmenter(
        head, dtype=jnp.bfloat16, param_dtype=param_dtype, remat="full",
        backbone_options={"drop_path_rate": 0.5},
    )  # fmt: skip
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.bfloat16)

    def loss(params, images):
        (logits, auxiliary), updated = model.apply(
            {**variables_of(params)},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        assert logits.dtype == auxiliary.dtype == jnp.float32
        return logits.sum() + auxiliary.sum(), updated

    def variables_of(params):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        return {**zeros, "params": params}

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        program, shapes = jax.make_jaxpr(jax.grad(loss, (0, 1), has_aux=True), return_shape=True)(
            variables["params"], images
        )
        merged = jax.eval_shape(replk_jax.reparameterize, variables)
        logits = jax.eval_shape(model.clone(deploy=True).apply, merged, images)
    assert logits.dtype == jnp.float32
    (gradients, dimages), updated = shapes
    for actual, expected in (
        (gradients, variables["params"]),
        (dimages, images),
        (updated["batch_stats"], variables["batch_stats"]),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    assert not set(reductions_in_16_bits(program.jaxpr))


# --- Fields ------------------------------------------------------------------------------


def test_the_heads_follow_the_network():
    model = segmenter("upernet", deploy=True, dtype=jnp.bfloat16, align_corners=True)
    for head in (model.decode_head, model.auxiliary_head):
        fields = (head.deploy, head.dtype, head.align_corners, head.num_classes)
        assert fields == (True, jnp.bfloat16, True, 5)
    changed = model.clone(deploy=False, num_classes=3)
    assert (changed.decode_head.deploy, changed.auxiliary_head.num_classes) == (False, 3)
    assert changed == segmenter("upernet", dtype=jnp.bfloat16, align_corners=True).clone(
        num_classes=3
    )


def test_align_corners_acts_inside_the_heads():
    model = segmenter("upernet")
    variables, images = random_variables(model), random_images(model, 1)
    aligned_model = model.clone(align_corners=True)

    @jax.jit
    def run(variables, images):
        return model.apply(variables, images), aligned_model.apply(variables, images)

    plain, aligned = run(variables, images)
    assert np.abs(plain - aligned).max() > 1e-2 * np.abs(plain).max()


@EVERY_HEAD
def test_description(head):
    model = segmenter(head, align_corners=True, param_dtype=jnp.bfloat16)
    assert from_description(json.loads(json.dumps(describe(model)))) == model
    without = model.clone(auxiliary_head=None)
    assert from_description(json.loads(json.dumps(describe(without)))) == without


def test_descriptions_of_earlier_versions():
    """Backbones without the fields that came later."""
    repvgg = create_model(FAMILIES["repvgg"], out_indices=(0, 1), output_stride=8)
    description = describe(repvgg)
    for field in ("contract_dilation", "dilated_layers"):
        del description[field]
    assert from_description(description) == repvgg
    fast = repvgg.clone(contract_dilation=False, dilated_layers=2)
    assert from_description(json.loads(json.dumps(describe(fast)))) == fast


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decode_head": {"head": "Unheard"}}, "KeyError: 'Unheard'"),
        ({"decode_head": {"head": "UPerHead", "pool_scales": [0]}}, "pool_scales cannot be"),
        ({"decode_head": {"head": "UPerHead", "dilations": [1]}}, "KeyError: 'dilations'"),
        ({"decode_head": {"head": "UPerHead", "pool_scales": [1] * 999}}, "pool_scales cannot be"),
        ({"decode_head": {"head": "DeepLabV3Head", "dilations": [1 << 40]}}, "dilations cannot be"),
        ({"decode_head": None}, "decode_head must be a SegmentationHead"),
        ({"decode_head": 3}, "decode_head cannot be 3"),
        ({"auxiliary_head": {"head": "FCNHead", "in_index": 2}}, "in_index=2"),
        ({"align_corners": 1}, "align_corners cannot be 1"),
        ({"num_classes": None}, "needs num_classes"),
    ],
)
def test_descriptions_that_are_refused(change, reason):
    with pytest.raises(ValueError, match=f"describes no model of this version: .*{reason}"):
        from_description({**describe(segmenter("upernet")), **change})


def test_heads_of_another_type():
    backbone = create_model(TINY, out_indices=(0, 1))
    with pytest.raises(TypeError, match="decode_head must be a SegmentationHead; got NoneType"):
        SegmentationNetwork(backbone=backbone, decode_head=None)
    with pytest.raises(TypeError, match="auxiliary_head must be a SegmentationHead; got int"):
        SegmentationNetwork(backbone=backbone, decode_head=FCNHead(), auxiliary_head=256)


def test_in_words():
    """One line, in a summary's title too."""
    model = segmenter("upernet")
    words = architecture_in_words(model)
    assert "decode_head UPerHead (channels 6, pool_scales 1-2-3-6, pool_channels None)" in words
    assert "auxiliary_head FCNHead (channels 4, in_index -2, num_convs 1, " in words
    assert "\n" not in words
    without = architecture_in_words(model.clone(auxiliary_head=None))
    assert "auxiliary_head none" in without
    title = str(replk_jax.summary(model, 64)).splitlines()[0]
    assert title == f"SegmentationNetwork on 64x64 images: {words}"


def test_mmsegmentation_flops_by_hand():
    """ResNet of one stage on 32 x 32 images: feature maps of 8 x 8 pixels and 8 channels."""
    architecture = replk_jax.ResNetArchitecture((1, 1), (4, 8), block="basic")
    model = create_segmenter("fcn", architecture, 3, channels=6, num_convs=1, concat_input=False)
    counts = replk_jax.summary(model, 32)
    stem, first, second = 16 * 16 * 4, 8 * 8 * 4, 4 * 4 * 8
    biases = stem + 2 * first + 3 * second + 4 * 4 * 3  # not of the head's other convolution
    relus = stem + 2 * first + 2 * second + 4 * 4 * 6
    assert counts.relu_elements == relus
    assert counts.mmsegmentation_flops == counts.merged.convolution + biases + relus
    assert f"{counts.mmsegmentation_flops:,}" in str(counts)
    alone = replk_jax.summary(model.clone(auxiliary_head=None), 32)
    assert alone.mmsegmentation_flops == counts.mmsegmentation_flops


# --- Use ---------------------------------------------------------------------------------


def test_the_auxiliary_head_is_dropped_on_request():
    model = segmenter("pspnet")
    variables = random_variables(model)
    dropped, kept = model.without_auxiliary_head(variables)
    assert dropped == model.clone(auxiliary_head=None)
    assert "auxiliary_head" in variables["params"]  # nothing is changed in place
    chex.assert_trees_all_equal_shapes_and_dtypes(kept, abstract_variables(dropped))
    assert dropped.without_auxiliary_head(kept) == (dropped, kept)
    merged_model, merged = for_inference(model, variables)
    assert merged_model == dropped.clone(deploy=True)
    assert merged.keys() == {"params"}
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, abstract_variables(merged_model))
    classifier = create_model(TINY)
    assert classifier.without_auxiliary_head({"params": {}}) == (classifier, {"params": {}})


@EVERY_HEAD
def test_saved_and_loaded(tmp_path, head):
    model = segmenter(head, align_corners=True)
    network = Checkpoint(model, random_variables(model), Preprocessing(32), tuple("abcde"))
    save(tmp_path / "network.safetensors", network)
    loaded = load(tmp_path / "network.safetensors")
    assert loaded.model == model
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)


@pytest.mark.parametrize("head", ["upernet", "deeplabv3plus"])
def test_exported(head):
    """The program has no auxiliary head, an open batch, and gives the logits of the network."""
    model = segmenter(head)
    variables, images = random_variables(model), random_images(model, 2, (33, 40))
    expected = jax.jit(model.apply)(variables, images)
    program = export_model(model, variables, image_size=(33, 40), platforms=["cpu"])
    plain = jax.jit(plain_function(model, variables))
    for actual in (program.call(images), plain(images)):
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error < 1e-4
    assert "auxiliary" not in program.mlir_module()


def test_equivalence_is_checked():
    model = segmenter("deeplabv3plus", FAMILIES["mobilenet_v2"])
    found = replk_jax.check_equivalence(model, random_variables(model), random_images(model))
    assert 0 < found.max_rel < 1e-4
