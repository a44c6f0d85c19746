"""Detection networks in all that users do with a network."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import create_detector, create_model
from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.single_stage import SingleStageDetector
from replk_jax.detection.structures import Truths
from replk_jax.models.description import architecture_in_words, describe, from_description
from replk_jax.models.variables import abstract_variables, by_path
from replk_jax.reparam import merge_branches
from replk_jax.torch_import import names
from tests import downstream, reference_data
from tests.detection import fcos_golden
from tests.helpers import TINY, random_images, random_variables
from tests.models.test_accumulation import reductions_in_16_bits

FIELDS = dict(
    neck_channels=8,
    neck_num_outputs=3,
    neck_start_level=0,
    channels=8,
    num_convs=1,
    num_groups=4,
    regression_limits=(16, 40),
    max_detections=7,
)


def tiny(architecture=TINY, **fields):
    return create_detector("fcos", architecture, 3, **{**FIELDS, **fields})


def truths_of(images, objects=2):
    """Shapes of annotated objects."""

    def shape(*sizes, dtype):
        return jax.ShapeDtypeStruct((images, objects, *sizes), dtype)

    return Truths(
        shape(4, dtype=jnp.float32), shape(dtype=jnp.int32), shape(dtype=bool),
        shape(33, 5, dtype=jnp.uint8),
    )  # fmt: skip


def test_merged_equals_training_time():
    """By the dense outputs: the boxes that are selected may change with the rounding."""
    model = tiny()
    variables = random_variables(model)
    images = jnp.asarray(random_images(model, 1, (33, 40)))
    assert replk_jax.check_equivalence(model, variables, images).max_rel < 1e-4


def test_comparable_outputs():
    model = tiny()
    outputs = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="comparable"),
        abstract_variables(model),
        jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.float32),
    )
    pyramid, (logits, distances, centerness) = outputs
    sizes = [(9, 10), (5, 5), (3, 3)]
    for channels, levels in ((8, pyramid), (3, logits), (4, distances), (1, centerness)):
        assert [x.shape for x in levels] == [(2, *size, channels) for size in sizes]


def test_merging_leaves_only_norms_of_groups():
    model = tiny()
    merged = jax.eval_shape(replk_jax.reparameterize, abstract_variables(model))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        merged, abstract_variables(model.clone(deploy=True))
    )
    assert merged.keys() == {"params"}
    scales = {path for path in by_path(merged["params"]) if path.endswith("/scale")}
    assert scales == {
        *(f"bbox_head/{tower}_convs_0/gn/scale" for tower in ("cls", "reg")),
        *(f"bbox_head/scales_{level}/scale" for level in range(3)),
    }


@pytest.mark.parametrize(
    "param_dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.exhaustive)]
)
def test_16_bits(param_dtype):
    """Implicit promotion is an error; nothing is summed in 16 bits, in either pass; losses and
    detections are float32."""
    model = tiny(
        dtype=jnp.bfloat16, param_dtype=param_dtype, remat="full",
        backbone_options={"drop_path_rate": 0.5},
    )  # fmt: skip
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.bfloat16)

    def loss(params, images, truths):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        losses, updated = model.apply(
            {**zeros, "params": params},
            images,
            train=True,
            truths=truths,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        assert {each.dtype for each in losses.values()} == {jnp.dtype("float32")}
        assert {each.shape for each in losses.values()} == {()}
        return sum(losses.values()), updated

    def detect(variables, images, sizes, scales):
        return model.apply(variables, images, sizes=sizes, scales=scales)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        program, (gradients, updated) = jax.make_jaxpr(
            jax.grad(loss, has_aux=True), return_shape=True
        )(variables["params"], images, truths_of(2))
        found = jax.eval_shape(
            detect,
            variables,
            images,
            jax.ShapeDtypeStruct((2, 2), jnp.int32),
            jax.ShapeDtypeStruct((2, 2), jnp.float32),
        )
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables["params"])
    chex.assert_trees_all_equal_shapes_and_dtypes(updated["batch_stats"], variables["batch_stats"])
    assert not set(reductions_in_16_bits(program.jaxpr))
    shapes = {name: (x.shape, str(x.dtype)) for name, x in found._asdict().items() if x is not None}
    assert shapes == {
        "boxes": ((2, 7, 4), "float32"),
        "scores": ((2, 7), "float32"),
        "classes": ((2, 7), "int32"),
        "count": ((2,), "int32"),
    }


def test_sizes_of_the_images(monkeypatch):
    """All of the input by default; any numbers are accepted."""
    monkeypatch.setattr(SingleStageDetector, "detect", lambda self, pyramid, sizes, _: sizes)
    model = tiny()
    variables, images = random_variables(model), jnp.zeros((2, 40, 48, 3))
    given = np.int32([[33, 20], [40, 1]])
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, sizes=jnp.asarray(given))))
    whole, sizes = run(variables, images)
    np.testing.assert_array_equal(whole, [[40, 48]] * 2)
    np.testing.assert_array_equal(sizes, given)
    assert whole.dtype == sizes.dtype == jnp.float32


def test_layers_of_parameters():
    """The neck and the head are in the last layer, as all that follows the stages."""
    model = tiny()
    for path in by_path(abstract_variables(model)["params"]):
        keys = tuple(path.split("/"))
        layer, stage = model.layer_of(keys), model.stage_of(keys)
        if keys[0] == "backbone":
            assert layer == model.backbone.layer_of(keys[1:])
        else:
            assert (layer, stage) == (model.num_layers - 1, model.num_stage_groups - 1)
            assert model.part_of(keys) in ("neck", "bbox_head")


# --- Reference data ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    """The network of the paper, and its abstract variables."""
    model = create_detector("fcos_replknet_31b_coco")
    return model, abstract_variables(model)


@reference_data.required
def test_the_tree_is_that_of_mmdetection(full_size):
    """Every key and shape, by the rule of names."""
    found = names.by_key(full_size[1], fcos_golden.rename)
    shapes = {key: names.torch_shape(leaf.shape) for key, (_, leaf) in found.items()}
    assert shapes == fcos_golden.manifest("fcos_31b")


@reference_data.required
def test_published_counts(full_size):
    """To the digit: parameters of all three forms, and FLOPs by the rule of the publication."""
    row = downstream.counts("fcos", "RepLKNet-31B_1Kpretrain_fcos_2x_coco.py")
    model, variables = full_size
    counts = replk_jax.summary(model, tuple(row["input_height_width"]))
    form = row["merged_and_fused"]
    flops = form["conv_multiply_adds"] + form["bias_additions"] + form["relu_elements"]
    assert counts.mmsegmentation_flops == flops
    assert round(flops / 1e9, 3) == row["rule_that_matches_most_rows"]["flops_G"]
    assert counts.relu_elements == form["relu_elements"]
    assert counts.merged.convolution == form["conv_multiply_adds"]
    assert counts.training.convolution == row["train"]["conv_multiply_adds"]
    assert counts.training.parameters == row["train"]["params"]
    assert [part.name for part in counts.parts[-2:]] == ["neck", "bbox_head"]

    merged = jax.eval_shape(merge_branches, variables)["params"]
    for name, tree in (
        ("train", variables["params"]),
        ("merged", merged),
        ("merged_and_fused", merged | {"backbone": downstream.fused(merged["backbone"])}),
    ):
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == row[name]["params"], name


# --- Fields ------------------------------------------------------------------------------


def test_parts_follow_the_network():
    model = tiny(deploy=True, dtype=jnp.bfloat16)
    for part in (model.backbone, model.neck, model.bbox_head):
        assert (part.deploy, part.dtype) == (True, jnp.bfloat16)
    changed = model.clone(num_classes=5, deploy=False)
    assert (changed.bbox_head.num_classes, changed.neck.deploy) == (5, False)


def test_description():
    model = tiny(
        param_dtype=jnp.bfloat16, norm_on_bbox=True, center_sampling=True, score_threshold=0.2
    )
    description = json.loads(json.dumps(describe(model)))
    assert from_description(description) == model
    assert description["bbox_head"]["regression_limits"] == [16, 40]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox_head": {"part": "Unheard"}}, "KeyError: 'Unheard'"),
        ({"bbox_head": {"part": "FPN"}}, "FPN is no FCOSHead"),
        ({"bbox_head": {"part": "FCOSHead", "num_convs": 0}}, "num_convs cannot be 0"),
        ({"bbox_head": {"part": "FCOSHead", "score_threshold": 2}}, "score_threshold cannot be"),
        ({"bbox_head": {"part": "FCOSHead", "regression_limits": []}}, "regression_limits cannot"),
        ({"bbox_head": {"part": "FCOSHead"}}, "needs 5 levels"),
        ({"neck": {"part": "FPN", "stride": 2}}, "KeyError: 'stride'"),
        ({"neck": None}, "neck cannot be None"),
        ({"num_classes": None}, "needs num_classes"),
    ],
)
def test_descriptions_that_are_refused(change, reason):
    with pytest.raises(ValueError, match=f"describes no model of this version: .*{reason}"):
        from_description({**describe(tiny()), **change})


def test_parts_of_another_type():
    backbone = create_model(TINY, out_indices=(0, 1))
    with pytest.raises(TypeError, match="neck must be an FPN; got NoneType"):
        SingleStageDetector(backbone=backbone, neck=None, bbox_head=FCOSHead())
    with pytest.raises(TypeError, match="bbox_head must be an FCOSHead; got int"):
        SingleStageDetector(backbone=backbone, neck=FPN(), bbox_head=256)


def test_in_words():
    words = architecture_in_words(tiny())
    assert "neck FPN (channels 8, num_outputs 3, start_level 0, extra_convs True" in words
    assert "bbox_head FCOSHead (channels 8, num_convs 1, num_groups 4, " in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": (2, 3)}, r"sizes must have the shape \(2, 2\); got \(2, 3\)"),
        ({"scales": (1, 2)}, r"scales must have the shape \(2, 2\); got \(1, 2\)"),
        ({"truths": (3, 5)}, r"classes of truths must have the shape \(2, 5\); got \(3, 5\)"),
        ({"images": (2, 32, 32, 4)}, r"images of shape \(N, H, W, 3\)"),
    ],
)
def test_calls_that_are_refused(given, message):
    model = tiny()
    options = {
        name: jax.ShapeDtypeStruct(given[name], jnp.float32)
        for name in ("sizes", "scales")
        if name in given
    }
    if "truths" in given:
        options["truths"] = truths_of(*given["truths"])
    images = jax.ShapeDtypeStruct(given.get("images", (2, 32, 32, 3)), jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda variables, images, options: model.apply(variables, images, **options),
            abstract_variables(model),
            images,
            options,
        )


def test_a_pyramid_that_does_not_fit():
    with pytest.raises(ValueError, match="takes 1 to 2 feature maps; the backbone returns 4"):
        tiny("resnet_18", neck_num_outputs=2, regression_limits=(16,))
    with pytest.raises(ValueError, match="needs 3 levels of the pyramid; it has 5"):
        tiny(neck_num_outputs=5)
    with pytest.raises(ValueError, match=r"in ascending order; got \(1, 0\)"):
        tiny(create_model(TINY, out_indices=(1, 0)))
