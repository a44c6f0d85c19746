"""Proposals and losses of Cascade Mask R-CNN against their definitions, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.detection.rpn import Proposals
from replk_jax.detection.structures import Truths
from replk_jax.detection.two_stage import TwoStageDetector
from tests.detection import rcnn_reference as reference
from tests.helpers import ONE_STAGE, random_variables

SHAPES, STRIDES = [(16, 25), (8, 13), (4, 7), (2, 4), (1, 2)], (4, 8, 16, 32, 64)
SIZES = np.float32([[61, 97], [50, 83], [61, 70]])  # of images padded to 64 x 100
K, OBJECTS = 3, (4, 0, 2)


def draw_truths(rng):
    """Boxes (N, 5, 4), classes, valid and masks (N, 5, 64, 100) of blocks of 4 x 4 pixels."""
    sides = rng.uniform(25, 48, (3, 5, 2))
    low = rng.uniform(0, SIZES[:, None, ::-1] - sides)
    boxes = np.concatenate([low, low + sides], axis=-1).astype(np.float32)
    valid = np.arange(5) < np.array(OBJECTS)[:, None]
    blocks = rng.random((3, 5, 16, 25)) < 0.5
    return boxes, rng.integers(0, K, (3, 5)), valid, blocks.repeat(4, axis=2).repeat(4, axis=3)


def draw_proposals(rng, truths):
    """30 boxes (N, 30, 4) close to objects or to padding, and whether each is valid."""
    close = truths[:, np.arange(30) % 5]
    boxes = close + rng.uniform(-4, 4, close.shape).astype(np.float32)
    return Proposals(boxes, rng.random((3, 30)) < 0.8)


@pytest.mark.exhaustive
def test_training_with_statistics_of_the_batch():
    """Of images of several sizes, of which one has no objects, with padded samples. To what about
    ten layers round, relatively; every sample and every pixel of the targets is the same."""
    model = replk_jax.create_detector(
        "cascade_mask_rcnn", ONE_STAGE, K, neck_channels=8, rpn_channels=8, rpn_train_pre_nms=30,
        rpn_train_post_nms=35, rpn_sample_count=40, box_convs=2, box_conv_channels=8,
        box_fc_channels=8, mask_convs=1, mask_channels=8, sample_count=45,
    )  # fmt: skip
    assert isinstance(model, TwoStageDetector)
    variables = random_variables(model)
    # Small offsets, so that boxes stay close to the objects and are positive in later stages.
    for stage in range(3):
        layer = variables["params"]["roi_head"][f"bbox_head_{stage}"]["fc_reg"]
        layer.update(jax.tree.map(lambda array: 0.2 * array, dict(layer)))
    rng = np.random.default_rng(3)
    pyramid = [np.float32(rng.standard_normal((3, *shape, 8))) for shape in SHAPES]
    boxes, classes, valid, masks = draw_truths(rng)
    truths = Truths(boxes, np.int32(classes), valid, np.packbits(masks, axis=-1))
    given = draw_proposals(rng, boxes)

    def run(network, pyramid, given, truths):
        sizes, rpn = jnp.asarray(SIZES), network.rpn_head
        outputs = rpn(pyramid)
        losses = rpn.losses(outputs, STRIDES, sizes, truths, None)
        proposals = rpn.propose(outputs, STRIDES, sizes, train=True)
        arguments = (pyramid, STRIDES, given, sizes, truths, None, True)
        return outputs, proposals, losses | network.roi_head.losses(*arguments)

    arguments = jax.tree.map(jnp.asarray, (variables, pyramid, given, truths))
    (outputs, proposals, actual), _ = jax.jit(
        lambda *args: model.apply(*args, method=run, mutable=["batch_stats"])
    )(*arguments)

    outputs, params = jax.tree.map(np.asarray, (outputs, variables["params"]["roi_head"]))
    levels, rpn = reference.anchors(SHAPES, STRIDES), model.rpn_head
    for image in range(3):
        expected = reference.proposals(
            [x[image] for x in outputs.logits], [x[image] for x in outputs.deltas], levels,
            SIZES[image], rpn.train_pre_nms, rpn.train_post_nms, rpn.nms_threshold,
        )  # fmt: skip
        assert proposals.valid[image].sum() == len(expected)
        np.testing.assert_allclose(proposals.boxes[image, : len(expected)], expected, atol=1e-3)

    objects, kinds, pixels = (
        [array[image][valid[image]] for image in range(3)] for array in (boxes, classes, masks)
    )
    of_class, of_boxes = reference.rpn_losses(rpn, outputs, levels, SIZES, objects)
    near = [given.boxes[image][given.valid[image]] for image in range(3)]
    expected, counts = reference.cascade_losses(
        model.roi_head, params, pyramid, STRIDES, near, SIZES, objects, kinds, pixels
    )
    assert all(number < 3 * 45 for number, _ in counts)  # there is padding
    assert all(positive >= 2 for _, positive in counts), counts  # not the truths alone
    expected |= {"loss_rpn_cls": of_class, "loss_rpn_bbox": of_boxes}
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
