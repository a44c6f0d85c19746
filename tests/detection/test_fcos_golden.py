"""FCOS against mmdetection's numbers, within the tolerances of their README."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.fcos_targets import fcos_targets, pyramid_points
from replk_jax.torch_import import names
from tests import downstream, reference_data
from tests.detection import fcos_golden as golden
from tests.downstream import assert_close

pytestmark = [
    reference_data.required,
]

# Of the largest value of an array; losses relatively; boxes in pixels.
OUTPUTS, GRADIENTS, LOSSES, BOXES = 5e-5, 1e-3, 1e-5, 1e-3
PARTS = (("backbone",), ("neck",), ("bbox_head",))
LIMITS = (64, 128, 256, 512)
STRIDES = (8, 16, 32, 64, 128)
VARIANTS = ("", "norm_on_bbox/", "center_sampling/")


@pytest.fixture(scope="module")
def tiny():
    """The detector, its variables, and all that it computes in one program.

    The batch has the images twice, first for boxes in pixels of the input.
    """
    model, variables = golden.tiny_fcos()
    maps, detections = golden.load("backbone_maps"), golden.load("detections")
    sizes = jnp.asarray(detections["meta/img_shape"])
    scales = jnp.asarray(detections["meta/scale_factor"][:, 1::-1])
    head = model.bbox_head
    normed, on_reg = head.clone(norm_on_bbox=True), head.clone(centerness_on_reg=True)

    def run(variables, image, sizes, scales):
        found, state = model.apply(
            variables,
            jnp.tile(image, (2, 1, 1, 1)),
            sizes=jnp.tile(sizes, (2, 1)),
            scales=jnp.concatenate([jnp.ones_like(scales), scales]),
            capture_intermediates=lambda module, _: module.path in PARTS,
        )
        maps, pyramid, outputs = jax.tree.map(
            lambda x: x[:3], [state["intermediates"][part]["__call__"][0] for (part,) in PARTS]
        )
        of_head = {"params": variables["params"]["bbox_head"]}
        return {
            "maps": maps,
            "pyramid": pyramid,
            "outputs": outputs,
            "norm_on_bbox": normed.apply(of_head, pyramid).distances,
            "centerness_on_reg": on_reg.apply(of_head, pyramid).centerness,
            "candidates": head.candidates(outputs, STRIDES, sizes.astype(jnp.float32), None),
            "input": jax.tree.map(lambda x: x[:3], found),
            "rescaled": jax.tree.map(lambda x: x[3:], found),
        }

    image = jnp.asarray(maps["image"])
    return model, variables, jax.jit(run)(variables, image, sizes, scales)


def test_backbone_and_pyramid(tiny):
    model, _, actual = tiny
    maps, expected = golden.load("backbone_maps"), golden.load("fpn")
    for i, feature_map in enumerate(actual["maps"]):
        assert_close(feature_map, maps[f"backbone_{i}"], OUTPUTS, f"feature map {i}")
    for level, feature_map in enumerate(actual["pyramid"]):
        assert_close(feature_map, expected[f"fpn_{level}"], OUTPUTS, f"level {level}")
    assert model.pyramid_strides == STRIDES


def test_pyramid_of_odd_sizes(tiny):
    model, variables, _ = tiny
    expected = golden.load("fpn")
    maps = [jnp.asarray(expected[f"odd_backbone_{i}"]) for i in range(4)]
    pyramid = jax.jit(model.neck.apply)({"params": variables["params"]["neck"]}, maps)
    assert len(pyramid) == golden.LEVELS
    for level, feature_map in enumerate(pyramid):
        assert_close(feature_map, expected[f"odd_fpn_{level}"], OUTPUTS, f"level {level}")


def test_head_outputs(tiny):
    """Distances of all levels with the range of exp(x), which `log` undoes."""
    _, variables, actual = tiny
    expected = golden.load("head_outputs")
    logits, distances, centerness = actual["outputs"]
    scales = variables["params"]["bbox_head"]
    for level in range(golden.LEVELS):
        stride, raw = STRIDES[level], np.log(distances[level]) / scales[f"scales_{level}"]["scale"]
        normed = actual["norm_on_bbox"][level]
        for name, value in (
            ("cls", logits[level]),
            ("reg_raw", raw),
            ("reg", distances[level]),
            ("centerness", centerness[level]),
            ("norm_on_bbox/train/reg", normed),
            ("norm_on_bbox/eval/reg", normed * stride),
            ("centerness_on_reg/centerness", actual["centerness_on_reg"][level]),
        ):
            assert_close(value, expected[f"{name}_{level}"], OUTPUTS, f"{name} of level {level}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets(variant):
    arrays, truths = golden.load("targets"), golden.truths()
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    points = pyramid_points(sizes, STRIDES)
    radius = 1.5 if variant == "center_sampling/" else None
    targets = jax.jit(
        partial(fcos_targets, points, num_classes=5, limits=LIMITS, center_radius=radius)
    )(truths)
    positives = 0
    for level, stride in enumerate(STRIDES):
        of_level = points.levels == level
        np.testing.assert_array_equal(points.positions[of_level], arrays[f"points_{level}"])
        labels = arrays[f"{variant}labels_{level}"]
        np.testing.assert_array_equal(targets.classes[:, of_level], labels)
        positive = labels < 5
        positives += positive.sum()
        factor = stride if variant == "norm_on_bbox/" else 1
        actual = np.asarray(targets.distances[:, of_level]) / factor
        expected = arrays[f"{variant}box_targets_{level}"]
        np.testing.assert_allclose(actual[positive], expected[positive], atol=1e-5)
        assert not actual[~positive].any()
        centerness = arrays[f"{variant}centerness_targets_{level}"]
        np.testing.assert_allclose(targets.centerness[:, of_level], centerness, atol=1e-6)
    assert positives > 5


@pytest.fixture(scope="module")
def losses(tiny):
    """The losses of all variants and the gradients of the first, from the stored feature maps."""
    model, variables, _ = tiny
    arrays = golden.load("backbone_maps")
    maps = [jnp.asarray(arrays[f"backbone_{i}"]) for i in range(4)]
    truths, head = golden.truths(), model.bbox_head

    @jax.jit
    def run(params, maps):
        def total(params, maps):
            pyramid = model.neck.apply({"params": params["neck"]}, maps)
            outputs = head.apply({"params": params["bbox_head"]}, pyramid)
            losses = head.losses(outputs, STRIDES, truths)
            return sum(losses.values()), (pyramid, outputs, losses)

        (loss, (pyramid, outputs, losses)), gradients = jax.value_and_grad(
            total, (0, 1), has_aux=True
        )(params, maps)
        normed = head.clone(norm_on_bbox=True)
        of_image = jax.tree.map(lambda x: x[2:], (outputs, truths))
        variants = {
            "": losses,
            "norm_on_bbox/": normed.losses(
                normed.apply({"params": params["bbox_head"]}, pyramid), STRIDES, truths
            ),
            "center_sampling/": head.clone(center_sampling=True).losses(outputs, STRIDES, truths),
            "no_objects/": head.losses(of_image[0], STRIDES, of_image[1]),
        }
        return loss, gradients, variants

    params = {part: variables["params"][part] for part in ("neck", "bbox_head")}
    return run(params, maps)


def test_losses(losses):
    arrays = golden.load("losses")
    total, _, variants = losses
    np.testing.assert_allclose(total, arrays["total"], rtol=LOSSES)
    for variant, actual in variants.items():
        assert set(actual) == {"loss_cls", "loss_bbox", "loss_centerness"}
        for name, loss in actual.items():
            np.testing.assert_allclose(loss, arrays[variant + name], rtol=LOSSES, err_msg=variant)


def test_gradients(losses):
    arrays = golden.load("losses")
    _, (gradients, maps), _ = losses
    by_name = names.by_key({"params": gradients}, golden.rename)
    checked = downstream.section(arrays, "grad/")
    for name, expected in checked.items():
        actual = names.to_torch(np.asarray(by_name[name][1]))
        assert_close(actual, expected, GRADIENTS, name)
    assert len(checked) == 20
    for i in (1, 2, 3):
        assert_close(maps[i], arrays[f"grad_backbone_{i}"], GRADIENTS, f"feature map {i}")
    assert not np.any(maps[0])


def test_candidates(tiny):
    """Before NMS: those above the threshold of each level, as sets, since equal scores may be in
    another order."""
    _, _, actual = tiny
    arrays, found = golden.load("detections"), actual["candidates"]
    for image in range(3):
        valid = np.asarray(found.valid[image])
        expected = {
            name: arrays[f"before_nms/{name}_{image}"] for name in ("boxes", "scores", "labels")
        }
        assert valid.sum() == len(expected["labels"])
        np.testing.assert_array_equal(found.classes[image][valid], expected["labels"])
        np.testing.assert_allclose(found.boxes[image][valid], expected["boxes"], atol=BOXES)
        np.testing.assert_allclose(found.scores[image][valid], expected["scores"], atol=1e-4)


@pytest.mark.parametrize("coordinates", ["input", "rescaled"])
def test_detections(tiny, coordinates):
    _, _, actual = tiny
    arrays, found = golden.load("detections"), actual[coordinates]
    for image in range(3):
        boxes_scores = arrays[f"{coordinates}/boxes_scores_{image}"]
        labels = arrays[f"{coordinates}/labels_{image}"]
        assert found.count[image] == len(labels) == 25
        np.testing.assert_array_equal(found.classes[image], labels)
        np.testing.assert_allclose(found.boxes[image], boxes_scores[:, :4], atol=BOXES)
        np.testing.assert_allclose(found.scores[image], boxes_scores[:, 4], atol=1e-4)
