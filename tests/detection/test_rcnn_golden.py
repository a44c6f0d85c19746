"""Cascade Mask R-CNN against mmdetection's numbers, within the tolerances of their README."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.assignment import BACKGROUND
from replk_jax.detection.pasting import paste_mask
from replk_jax.detection.roi_heads import CascadeRoIHead
from replk_jax.detection.roi_losses import box_head_losses, mask_loss
from replk_jax.detection.roi_targets import sample_rois
from replk_jax.detection.rpn import Outputs, Proposals
from replk_jax.ops.roi_align import mask_targets
from replk_jax.torch_import import names
from tests import downstream, reference_data
from tests.detection import rcnn_golden as golden
from tests.downstream import assert_close

pytestmark = [
    reference_data.required,
]

# Of the largest value of an array; losses relatively; boxes in pixels; probabilities.
OUTPUTS, GRADIENTS, LOSSES, BOXES, SCORES = 5e-5, 1e-3, 1e-5, 1e-3, 1e-4
LEVELS, STAGES = 5, 3
SCALES = jnp.asarray([[1.5, 0.75], [0.5, 1.25]])


@pytest.fixture(scope="module")
def tested():
    """What the tiny detector computes of the golden pyramid, in one program.

    The batch has the images twice: first for boxes in pixels of the input, then rescaled.
    """
    model, variables = golden.tiny_detector()
    maps = golden.load("features")
    pyramid = tuple(jnp.tile(maps[f"fpn_{level}"], (2, 1, 1, 1)) for level in range(LEVELS))

    def everything(network, pyramid, sizes, scales):
        head = network.roi_head
        outputs = network.rpn_head(pyramid)
        proposals = network.rpn_head.propose(outputs, golden.STRIDES, sizes, train=False)
        return {
            "outputs": outputs,
            "test": proposals,
            "train": network.rpn_head.propose(outputs, golden.STRIDES, sizes, train=True),
            "candidates": head.candidates(pyramid, golden.STRIDES, proposals.boxes, sizes),
            "detections": head.detect(pyramid, golden.STRIDES, proposals, sizes, scales),
        }

    scales = jnp.concatenate([jnp.ones((2, 2)), SCALES])
    sizes = jnp.tile(golden.SIZES, (2, 1)).astype(jnp.float32)
    run = jax.jit(lambda variables, *args: model.apply(variables, *args, method=everything))
    return jax.tree.map(np.asarray, run(variables, pyramid, sizes, scales))


def test_rpn(tested):
    arrays = golden.load("rpn")
    for level in range(LEVELS):
        for actual, name in zip(tested["outputs"], ("cls", "reg"), strict=True):
            assert_close(actual[level][:2], arrays[f"{name}_{level}"], OUTPUTS, f"{name} {level}")
    for setting in ("test", "train"):
        boxes, valid = tested[setting]
        assert valid.all()
        for image in range(2):
            expected = arrays[f"proposals_{setting}_{image}"][:, :4]
            np.testing.assert_allclose(boxes[image], expected, atol=BOXES)


def test_boxes_before_nms(tested):
    """Those of the last stage, which depend on the boxes and scores of all stages."""
    arrays = golden.load("test_input")
    boxes, scores = tested["candidates"]
    for image in range(2):
        expected = arrays[f"image{image}/before_nms_boxes"]
        np.testing.assert_allclose(boxes[image].reshape(expected.shape), expected, atol=BOXES)
        expected = arrays[f"image{image}/before_nms_scores"]
        np.testing.assert_allclose(scores[image], expected, atol=SCORES)


def test_detections(tested):
    """The same set, sorted by score; masks to the pixel."""
    arrays = golden.load("test_input")
    found = tested["detections"]
    for image in range(2):
        expected, classes = arrays[f"image{image}/boxes_scores"], arrays[f"image{image}/labels"]
        masks = golden.unpacked(
            arrays, f"image{image}/masks_packed", f"image{image}/mask_shape"
        ).astype(bool)
        assert found.count[image] == len(expected)
        assert np.all(np.diff(found.scores[image]) <= 0)
        # There, the detections are in order of class, and then of score.
        order = np.lexsort((-found.scores[image], found.classes[image]))
        np.testing.assert_array_equal(found.classes[image][order], classes)
        np.testing.assert_allclose(found.boxes[image][order], expected[:, :4], atol=BOXES)
        np.testing.assert_allclose(found.scores[image][order], expected[:, 4], atol=SCORES)
        for place, pixels in zip(order, masks, strict=True):
            mask, box = found.masks[image][place], found.boxes[image][place]
            np.testing.assert_array_equal(paste_mask(mask, box, pixels.shape), pixels)


def test_rescaling_changes_only_the_boxes(tested):
    """IoU, and so NMS, does not change if both axes are scaled; masks see the input's pixels."""
    found = tested["detections"]
    vertical, horizontal = np.asarray(SCALES).T
    factors = np.stack([horizontal, vertical] * 2, axis=-1)[:, None]
    for name in ("classes", "count"):
        actual = getattr(found, name)
        np.testing.assert_array_equal(actual[2:], actual[:2])
    np.testing.assert_allclose(found.boxes[2:] * factors, found.boxes[:2], atol=1e-4)
    np.testing.assert_allclose(found.scores[2:], found.scores[:2], atol=1e-6)
    np.testing.assert_allclose(found.masks[2:], found.masks[:2], atol=1e-4)


LOSS_NAMES = ["loss_rpn_cls", "loss_rpn_bbox"] + [
    f"s{stage}.{name}"
    for stage in range(STAGES)
    for name in ("loss_cls", "acc", "loss_bbox", "loss_mask")
]


@pytest.fixture(scope="module")
def losses():
    """The compiled losses of the golden pyramid, from truths padded with 2 more."""
    model, variables = golden.tiny_detector()
    maps = golden.load("features")
    pyramid = tuple(jnp.asarray(maps[f"fpn_{level}"]) for level in range(LEVELS))
    sizes = golden.SIZES.astype(jnp.float32)

    @jax.jit
    def run(truths):
        return model.apply(variables, pyramid, sizes, truths, None, False, method=model.losses)

    return run


@pytest.mark.exhaustive
def test_losses(losses):
    """With frozen statistics, of the first boxes in place of random ones."""
    arrays = golden.load("train_frozen_bn")
    actual = losses(golden.truths(padding=2))
    assert set(actual) == set(LOSS_NAMES)
    for name, value in actual.items():
        assert value.dtype == jnp.float32
        assert value.shape == ()
        expected = arrays[f"loss/{name}"].reshape(())
        np.testing.assert_allclose(value, expected, rtol=LOSSES, err_msg=name)


@pytest.mark.exhaustive
def test_losses_without_objects(losses):
    """Anchors and boxes learn that all is background, and nothing else."""
    truths = golden.truths(padding=2)
    actual = losses(truths._replace(valid=jnp.zeros_like(truths.valid)))
    for name, value in actual.items():
        if name.endswith(("bbox", "mask")):
            assert value == 0, name
        else:
            assert 0 <= value < 100, name
    assert actual["loss_rpn_cls"] > 0
    assert actual["s2.loss_cls"] > 0


@pytest.mark.exhaustive
def test_losses_ignore_objects_without_area(losses):
    """Their offsets and masks would be infinite or empty."""
    truths = golden.truths(padding=2)
    empty = truths.boxes.at[:, 5].set(jnp.asarray([30.0, 20.0, 30.0, 40.0]))
    with_empty = truths._replace(boxes=empty, valid=truths.valid.at[:, 5].set(True))
    jax.tree.map(np.testing.assert_array_equal, losses(with_empty), losses(truths))


def test_rpn_losses():
    """From the golden outputs of the RPN; without objects, all anchors are background."""
    arrays, truths = golden.load("train_frozen_bn"), golden.truths(padding=2)
    model, _ = golden.tiny_detector()
    rpn = golden.load("rpn")
    outputs = Outputs(
        *(tuple(rpn[f"{name}_{level}"] for level in range(LEVELS)) for name in ("cls", "reg"))
    )
    sizes = golden.SIZES.astype(jnp.float32)
    run = jax.jit(
        lambda outputs, truths: model.rpn_head.losses(outputs, golden.STRIDES, sizes, truths, None)
    )
    for name, value in run(outputs, truths).items():
        np.testing.assert_allclose(value, arrays[f"loss/{name}"], rtol=LOSSES)
    empty = run(outputs, truths._replace(valid=jnp.zeros_like(truths.valid)))
    assert empty["loss_rpn_bbox"] == 0
    assert 0 < empty["loss_rpn_cls"] < 10


@pytest.fixture(scope="module")
def stage():
    """The compiled sample, losses, mask targets and mask loss of a stage."""
    truths = golden.truths(padding=2)

    @jax.jit
    def run(proposals, threshold, stds, logits, deltas, mask_logits):
        rois = sample_rois(
            proposals,
            truths,
            threshold=threshold,
            match_low_quality=False,
            count=24,
            fraction=0.25,
            background=5,
            key=None,
        )
        first = rois.first(24, 0.25)
        targets = jax.vmap(mask_targets)(truths.masks, first.boxes, jnp.maximum(first.truths, 0))
        return (
            rois,
            box_head_losses(logits, deltas, rois, stds, "giou"),
            targets,
            mask_loss(mask_logits, targets.reshape(-1, 28, 28), first.positive.reshape(-1)),
        )

    return run


@pytest.mark.parametrize("index", range(STAGES))
def test_a_stage(stage, index):
    """Sample, targets and losses, from the golden proposals and outputs."""
    arrays, settings = golden.load("train_frozen_bn"), CascadeRoIHead.stages[index]
    boxes, valid = np.zeros((2, 60, 4), np.float32), np.zeros((2, 60), bool)
    for image in range(2):
        proposals = arrays[f"stage{index}/image{image}/proposals"]
        boxes[image, : len(proposals)], valid[image, : len(proposals)] = proposals, True
    labels = arrays[f"stage{index}/labels"]
    positive = labels < 5
    # Only the first stage has golden mask logits: of positive boxes, image by image.
    mask_logits = np.zeros((2 * 6, 28, 28), np.float32)
    places = np.flatnonzero(positive.reshape(2, 24)[:, :6])
    if index == 0:
        of_classes = arrays["stage0/mask_logits"]
        mask_logits[places] = of_classes[np.arange(len(places)), :, :, labels[positive]]
    rois, losses, targets, of_masks = jax.tree.map(
        np.asarray,
        stage(
            Proposals(boxes, valid),
            settings.threshold,
            np.float32(settings.stds),
            arrays[f"stage{index}/cls_score"].reshape(2, 24, 6),
            arrays[f"stage{index}/bbox_pred"].reshape(2, 24, 5, 4),
            mask_logits,
        ),
    )
    assert rois.valid.all()
    np.testing.assert_array_equal(rois.labels.ravel(), labels)
    np.testing.assert_array_equal(rois.positive.ravel(), positive)
    actual = rois.targets.reshape(-1, 4)[positive]
    np.testing.assert_array_equal(actual, arrays[f"stage{index}/box_targets"][positive])
    for image in range(2):
        case = downstream.section(arrays, f"stage{index}/image{image}/")
        count = len(case["pos_gt"])
        expected = np.concatenate([case["pos_boxes"], case["neg_boxes"]])
        np.testing.assert_array_equal(rois.boxes[image], expected)
        np.testing.assert_array_equal(rois.truths[image, :count], case["pos_gt"])
        np.testing.assert_array_equal(rois.is_truth[image, :count], case["pos_is_gt"])
        assert np.all(rois.truths[image, count:] == BACKGROUND)
        assert not np.any(rois.is_truth[image, count:])
    for name, value in losses.items():
        weight = settings.weight if "loss" in name else 1
        weight *= 10 if name == "loss_bbox" else 1
        expected = arrays[f"loss/s{index}.{name}"].reshape(())
        np.testing.assert_allclose(value * weight, expected, rtol=LOSSES, err_msg=name)
    targets = targets.reshape(-1, 28, 28)[places]
    np.testing.assert_array_equal(targets, arrays[f"stage{index}/mask_targets"])
    if index == 0:
        np.testing.assert_allclose(of_masks, arrays["loss/s0.loss_mask"][0], rtol=LOSSES)


@pytest.mark.exhaustive
def test_gradients():
    """Of the whole network, from the images."""
    arrays = golden.load("train_frozen_bn")
    model, variables = golden.tiny_detector()
    images = jnp.asarray(golden.load("features")["image"])

    @jax.jit
    def run(params):
        def loss(params):
            losses = model.apply(
                {**variables, "params": params},
                images,
                sizes=golden.SIZES,
                truths=golden.truths(),
            )
            return sum(value for name, value in losses.items() if "loss" in name)

        return jax.value_and_grad(loss)(params)

    total, gradients = run(variables["params"])
    np.testing.assert_allclose(total, arrays["total"], rtol=LOSSES)
    by_name = names.by_key({"params": gradients}, str)
    checked = downstream.section(arrays, "grad/")
    for name, value in checked.items():
        assert_close(names.to_torch(np.asarray(by_name[name][1])), value, GRADIENTS, name)
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(np.sqrt(squares), arrays["grad_norm_all"], rtol=1e-4)
    assert len(checked) == 37
