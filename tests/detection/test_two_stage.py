"""Two-stage detectors in all that users do with a network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.detection.roi_heads import StandardRoIHead
from replk_jax.detection.structures import Truths
from replk_jax.models.description import describe, from_description
from replk_jax.models.parts import own_fields
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import names
from tests import downstream, reference_data
from tests.detection import rcnn_golden
from tests.helpers import TINY, random_images, random_variables

CONFIGS = {
    "31b": "RepLKNet-31B_1Kpretrain_cascade_mask_rcnn_3x_coco.py",
    "31l": "RepLKNet-31L_22Kpretrain_cascade_mask_rcnn_3x_coco.py",
    "xl": "RepLKNet-XL_MegData73Mpretrain_cascade_mask_rcnn_3x_coco.py",
}
FIELDS = dict(
    neck_channels=8,
    rpn_channels=8,
    rpn_test_pre_nms=10,
    rpn_test_post_nms=6,
    rpn_train_pre_nms=20,
    rpn_train_post_nms=12,
    rpn_sample_count=16,
    box_fc_channels=8,
    sample_count=8,
    max_detections=5,
)
KINDS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")


def tiny(kind, **fields):
    if "mask" in kind:
        fields = {"mask_convs": 1, "mask_channels": 8, **fields}
    return replk_jax.create_detector(kind, TINY, 3, **{**FIELDS, **fields})


def some_truths(valid=True):
    boxes = jnp.asarray([[[4.0, 4.0, 30.0, 28.0], [0.0, 10.0, 12.0, 33.0]]])
    masks = jnp.full((1, 2, 33, 5), 0b11110000, jnp.uint8)
    return Truths(boxes, jnp.asarray([[0, 2]]), jnp.full((1, 2), valid), masks)


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions(kind):
    """They have all fields: a rebuilt network has the losses of the one that was described."""
    model = tiny(kind, rpn_smooth_l1_beta=0.5, rpn_least_positive=0.2, positive_fraction=0.5)
    rebuilt = from_description(json.loads(json.dumps(describe(model))))
    assert rebuilt == model
    assert rebuilt.roi_head.masks is ("mask" in kind)
    for part in (model.neck, model.rpn_head, model.roi_head):
        assert set(part.stored_fields) == own_fields(type(part))


def test_settings_of_mmdetection():
    """What distinguishes the kinds, of mmdetection's `configs/_base_/models`."""
    heads = {kind: replk_jax.create_detector(kind, TINY, 3) for kind in KINDS}
    settings = {
        kind: (
            len(model.roi_head.stages),
            model.roi_head.box_loss,
            model.roi_head.class_agnostic,
            model.roi_head.match_low_quality,
            model.rpn_head.train_post_nms,
            model.rpn_head.anchors_inside,
            (model.roi_head.box_convs, model.roi_head.box_fcs),
        )
        for kind, model in heads.items()
    }
    assert settings == {
        "faster_rcnn": (1, "l1", False, False, 1000, False, (0, 2)),
        "mask_rcnn": (1, "l1", False, True, 1000, False, (0, 2)),
        "cascade_rcnn": (3, "smooth_l1", True, False, 2000, True, (0, 2)),
        "cascade_mask_rcnn": (3, "giou", False, False, 2000, True, (4, 1)),
    }


def test_errors():
    model = tiny("mask_rcnn")
    with pytest.raises(ValueError, match=r"box_loss must be one of l1, smooth_l1, giou"):
        tiny("mask_rcnn", box_loss="l2")
    for field, value in (
        ("sample_count", 0),
        ("positive_fraction", 1.5),
        ("box_loss_weight", -1.0),
        ("rpn_train_pre_nms", 0),
        ("rpn_least_positive", 2),
    ):
        name = field.removeprefix("rpn_")
        with pytest.raises(ValueError, match=f"{name} of a .* cannot be {value}"):
            tiny("mask_rcnn", **{field: value})
    with pytest.raises(TypeError, match="rpn_head must be a RPNHead; got StandardRoIHead"):
        model.clone(rpn_head=StandardRoIHead())
    pyramid, sizes = tuple(jnp.zeros((1, 8, 8, 8)) for _ in range(5)), jnp.full((1, 2), 32.0)
    truths = some_truths()._replace(masks=None)
    with pytest.raises(ValueError, match="learns from truths with masks"):
        model.apply({}, pyramid, sizes, truths, None, False, method=model.losses)
    truths = jax.tree.map(lambda array: array[:, :0], some_truths())
    with pytest.raises(ValueError, match="pad them to at least one"):
        model.apply({}, pyramid, sizes, truths, None, False, method=model.losses)


@pytest.mark.exhaustive
def test_dtypes_where_float64_is_the_default():
    """Python's numbers and indices are 64 bits wide there; results are as everywhere."""
    truths = some_truths()
    with jax.enable_x64(True):
        model = tiny("cascade_mask_rcnn")
        variables, images = abstract_variables(model), jnp.zeros((1, 33, 40, 3), jnp.float32)

        def both(variables, images, truths, key):
            found = model.apply(variables, images, scales=jnp.ones((1, 2), jnp.float32))
            losses = model.apply(variables, images, truths=truths, key=key)
            return found, losses

        found, losses = jax.eval_shape(both, variables, images, truths, jax.random.key(0))
    assert [str(array.dtype) for array in found] == [
        "float32", "float32", "int32", "int32", "float32",
    ]  # fmt: skip
    assert {str(loss.dtype) for loss in losses.values()} == {"float32"}


@pytest.mark.exhaustive
def test_merged_equals_training_time():
    """Of the dense outputs, and of the box and mask heads for a grid of boxes."""
    model = tiny("cascade_mask_rcnn", box_conv_channels=8)
    variables = random_variables(model)
    images = jnp.asarray(random_images(model, 1, (33, 40)))
    assert replk_jax.check_equivalence(model, variables, images).max_rel < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_training_step(kind, dtype):
    """Random samples and batch statistics; with objects and without, all is finite."""
    model = tiny(kind, dtype=dtype)
    variables = random_variables(model)
    images = jnp.asarray(random_images(model, 1, (33, 40)), dtype)

    @jax.jit
    def step(params, truths, key):
        def loss(params):
            losses, _ = model.apply(
                {**variables, "params": params}, images, True, truths=truths, key=key,
                mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            return sum(value for name, value in losses.items() if "loss" in name), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    for valid in (True, False):
        results = step(variables["params"], some_truths(valid), jax.random.key(0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(results):
            assert np.all(np.isfinite(np.asarray(leaf, np.float32))), path
        (_, losses), _ = results
        assert all(value.dtype == jnp.float32 for value in losses.values())
        for name, value in losses.items():
            if name.endswith(("bbox", "mask")) and not valid:
                assert value == 0, name


@pytest.mark.exhaustive
@reference_data.required
@pytest.mark.parametrize("size", CONFIGS)
def test_official_networks(size):
    """The tensors, and the published counts to the digit."""
    model = replk_jax.create_detector(f"cascade_mask_rcnn_replknet_{size}_coco")
    flat = jax.tree_util.tree_leaves_with_path(abstract_variables(model))
    shapes = {
        names.by_rule(tuple(key.key for key in path)): names.to_torch(
            np.empty(leaf.shape, np.bool_)
        ).shape
        for path, leaf in flat
    }
    assert shapes == rcnn_golden.manifest(f"cascade_{size}")

    row = downstream.counts("cascade_mask_rcnn", CONFIGS[size])
    counts = replk_jax.summary(model, tuple(row["input_height_width"]))
    training, merged = row["train"], row["merged_and_fused"]
    convolutions = ("conv_multiply_adds", "deconv_multiply_adds")
    assert counts.training.parameters == training["params"]
    assert counts.training.convolution == sum(training[name] for name in convolutions)
    assert counts.merged.convolution == sum(merged[name] for name in convolutions)
    for ours, theirs in (
        ("linear", "linear_multiply_adds"),
        ("bias_additions", "bias_additions"),
        ("batch_norm_elements", "norm_elements"),
    ):
        assert getattr(counts.training, ours) == training[theirs], ours
    assert counts.relu_elements == merged["relu_elements"]
    flops = row["rule_that_matches_most_rows"]["flops_G"]
    assert round(counts.mmsegmentation_flops / 1e9, 3) == flops
