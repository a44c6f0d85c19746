"""The losses of Cascade Mask R-CNN against their definitions, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.detection.structures import Truths
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


@pytest.mark.exhaustive
def test_losses_with_statistics_of_the_batch():
    """Of images of several sizes, of which one has no objects, with padded samples. To what about
    ten layers round, relatively; every sample and every pixel of the targets is the same."""
    model = replk_jax.create_detector(
        "cascade_mask_rcnn", ONE_STAGE, K, neck_channels=8, rpn_channels=8, rpn_train_pre_nms=30,
        rpn_train_post_nms=35, rpn_sample_count=40, box_convs=2, box_conv_channels=8,
        box_fc_channels=8, mask_convs=1, mask_channels=8, sample_count=45,
    )  # fmt: skip
    assert isinstance(model, replk_jax.DetectionNetwork)
    variables = random_variables(model)
    # Small offsets, so that boxes stay close to the objects and are positive in later stages.
    for stage in range(3):
        layer = variables["params"]["roi_head"][f"bbox_head_{stage}"]["fc_reg"]
        layer.update(jax.tree.map(lambda array: 0.2 * array, dict(layer)))
    rng = np.random.default_rng(3)
    pyramid = [np.float32(rng.standard_normal((3, *shape, 8))) for shape in SHAPES]
    boxes, classes, valid, masks = draw_truths(rng)
    truths = Truths(boxes, np.int32(classes), valid, np.packbits(masks, axis=-1))

    def run(network, pyramid, truths):
        outputs = network.rpn_head(pyramid)
        return outputs, network.losses(pyramid, jnp.asarray(SIZES), truths, None, True)

    (outputs, actual), _ = jax.jit(
        lambda *args: model.apply(*args, method=run, mutable=["batch_stats"])
    )(variables, pyramid, truths)

    outputs, params = jax.tree.map(np.asarray, (outputs, variables["params"]["roi_head"]))
    levels = reference.anchors(SHAPES, STRIDES)
    objects, kinds, pixels = (
        [array[image][valid[image]] for image in range(3)] for array in (boxes, classes, masks)
    )
    rpn = model.rpn_head
    expected = dict(
        zip(
            ("loss_rpn_cls", "loss_rpn_bbox"),
            reference.rpn_losses(rpn, outputs, levels, SIZES, objects),
            strict=True,
        )
    )
    proposals = [
        reference.proposals(
            [x[image] for x in outputs.logits], [x[image] for x in outputs.deltas], levels,
            SIZES[image], rpn.train_pre_nms, rpn.train_post_nms, rpn.nms_threshold,
        )
        for image in range(3)
    ]  # fmt: skip
    of_stages, counts = reference.cascade_losses(
        model.roi_head, params, pyramid, STRIDES, proposals, SIZES, objects, kinds, pixels
    )
    assert all(number < 3 * 45 for number, _ in counts)  # there is padding
    assert all(positive >= 2 for _, positive in counts[:2])  # not the truths alone
    expected |= of_stages
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
