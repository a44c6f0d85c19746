"""FCOS's targets, losses and detections against definitions in NumPy, and their corner cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.fcos import FCOSHead, FCOSOutputs, _most_likely
from replk_jax.detection.fcos_targets import fcos_targets, pyramid_points
from replk_jax.detection.structures import Truths
from tests.detection import reference
from tests.ops.detection_reference import overlap

SIZES, STRIDES = [(13, 21), (7, 11), (4, 6)], (8, 16, 32)
LIMITS = (20, 48)
K = 4


def random_truths(seed, images=2, objects=9):
    """Boxes on a grid of half pixels, so that many sides meet points exactly, and areas are equal;
    two of each image are empty, and the last two are padding."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(-8, [300, 180], (images, objects, 2)) / 2
    boxes = np.concatenate([corners, corners + rng.integers(20, 150, corners.shape) / 2], axis=-1)
    boxes[:, 1] = boxes[:, 0]  # the same box twice
    boxes[:, 2, 2] = boxes[:, 2, 0]  # without width
    boxes[:, 3, 3] = boxes[:, 3, 1] - 4  # upside down
    boxes[:, 4] = [4, 12, 44, 52]  # whose sides meet points of the first level
    valid = np.ones((images, objects), bool)
    valid[:, -2:] = False
    classes = rng.integers(0, K, (images, objects)).astype(np.int32)
    return Truths(jnp.asarray(boxes, jnp.float32), jnp.asarray(classes), jnp.asarray(valid))


@pytest.mark.parametrize("radius", [None, 1.5])
def test_targets_by_definition(radius):
    points = pyramid_points(SIZES, STRIDES)
    assign = jax.jit(
        partial(fcos_targets, points, num_classes=K, limits=LIMITS, center_radius=radius)
    )
    positives = 0
    for seed in range(4):
        truths = random_truths(seed)
        actual = assign(truths)
        for image in range(2):
            valid = np.asarray(truths.valid[image])
            classes, distances, centerness = reference.targets(
                SIZES,
                STRIDES,
                np.asarray(truths.boxes[image])[valid],
                np.asarray(truths.classes[image])[valid],
                K,
                LIMITS,
                radius,
            )
            np.testing.assert_array_equal(actual.classes[image], classes)
            np.testing.assert_array_equal(actual.distances[image], distances)
            np.testing.assert_allclose(actual.centerness[image], centerness, atol=1e-6)
            positives += (classes < K).sum()
    assert positives > 80


@pytest.mark.exhaustive
@pytest.mark.parametrize("radius", [None, 1.5])
def test_targets_of_a_large_image(radius):
    """512 x 896 pixels with the settings of mmdetection; all five levels have positive points."""
    strides, limits = (8, 16, 32, 64, 128), (64, 128, 256, 512)
    sizes = [(512 // stride, 896 // stride) for stride in strides]
    boxes = [
        [3, 5, 890, 507], [100, 60, 700, 500], [200, 100, 520, 420], [300, 150, 460, 300],
        [10, 20, 90, 80], [400, 200, 440, 260], [0, 0, 896, 512], [500.5, 17.25, 830.75, 333],
    ]  # fmt: skip
    classes = np.arange(8) % K
    truths = Truths(jnp.float32([boxes]), jnp.int32([classes]), jnp.ones((1, 8), bool))
    points = pyramid_points(sizes, strides)
    actual = jax.jit(
        partial(fcos_targets, points, num_classes=K, limits=limits, center_radius=radius)
    )(truths)
    expected = reference.targets(sizes, strides, boxes, classes, K, limits, radius)
    assert set(points.levels[expected[0] < K]) == set(range(5))
    np.testing.assert_array_equal(actual.classes[0], expected[0])
    np.testing.assert_array_equal(actual.distances[0], expected[1])
    np.testing.assert_allclose(actual.centerness[0], expected[2], atol=1e-6)


def test_ends_of_the_ranges():
    """A largest distance that equals a limit is in the ranges of both levels."""
    truths = Truths(
        jnp.asarray([[[2.0, 2.0, 24.0, 24.0]]]),
        jnp.zeros((1, 1), jnp.int32),
        jnp.ones((1, 1), bool),
    )
    # Points at (4, 4) of pairs of levels, 20 from the right side.
    points = pyramid_points([(1, 1)] * 2, (8, 8))
    for limit, expected in ((20, [1, 1]), (19.5, [0, 1]), (20.5, [1, 0])):
        targets = jax.jit(partial(fcos_targets, points, num_classes=K, limits=[limit]))(truths)
        np.testing.assert_array_equal((targets.classes < K).astype(int), [expected])


def test_targets_without_room_for_objects():
    truths = Truths(jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0), bool))
    targets = fcos_targets(pyramid_points(SIZES, STRIDES), truths, K, LIMITS)
    count = sum(rows * columns for rows, columns in SIZES)
    assert targets.classes.shape == (2, count)
    assert (targets.classes == K).all()
    assert targets.distances.shape == (2, count, 4)
    assert not targets.distances.any()
    assert not targets.centerness.any()


def random_outputs(seed, images=2, spread=2.0):
    rng = np.random.default_rng(seed)

    def of_levels(channels, function):
        return tuple(
            jnp.asarray(function(rng.standard_normal((images, *size, channels))), jnp.float32)
            for size in SIZES
        )

    return FCOSOutputs(
        of_levels(K, lambda x: spread * x - 1),
        of_levels(4, lambda x: 12 * np.exp(0.5 * x)),
        of_levels(1, lambda x: x),
    )


@pytest.mark.parametrize(("in_strides", "seed"), [(False, 0), (True, 1)])
def test_detections_by_definition(in_strides, seed):
    outputs = random_outputs(seed)
    if in_strides:
        outputs = outputs._replace(distances=tuple(x / 10 for x in outputs.distances))
    head = FCOSHead(
        num_classes=K, norm_on_bbox=in_strides, score_threshold=0.3, nms_threshold=0.4,
        candidates_per_level=60, max_detections=40, regression_limits=LIMITS,
    )  # fmt: skip
    sizes = np.float32([[100, 160], [97, 155]])
    scales = np.float32([[0.5, 0.75], [1.25, 2]])
    found = jax.jit(head.detect, static_argnums=1)(outputs, STRIDES, sizes, scales)
    for image in range(2):
        expected = reference.detections(
            [[np.asarray(x[image]) for x in level] for level in zip(*outputs, strict=True)],
            STRIDES,
            sizes[image],
            scales[image],
            threshold=0.3,
            per_level=60,
            nms=0.4,
            most=40,
            in_strides=in_strides,
        )
        scores, classes, boxes = zip(*expected, strict=True)
        assert found.count[image] == len(expected) == 40
        np.testing.assert_allclose(found.scores[image], scores, atol=1e-6)
        np.testing.assert_array_equal(found.classes[image], classes)
        np.testing.assert_allclose(found.boxes[image], boxes, atol=1e-4)


def test_fewer_detections_than_there_is_room_for():
    """The rest is padding. A score has to be above the threshold."""
    outputs = random_outputs(2)
    # The second image has no detection.
    outputs = outputs._replace(logits=tuple(x.at[1].set(-9) for x in outputs.logits))
    head = FCOSHead(num_classes=K, max_detections=600, nms_threshold=0.2, regression_limits=LIMITS)
    sizes = np.float32([[100, 160]] * 2)
    detect = jax.jit(head.detect, static_argnums=1)
    found = jax.tree.map(np.asarray, detect(outputs, STRIDES, sizes, None))
    assert found.boxes.shape == (2, 600, 4)
    assert 10 < found.count[0] < 600
    assert found.count[1] == 0
    for image, count in enumerate(found.count):
        assert (found.scores[image, :count] > 0).all()
        assert (found.classes[image, :count] >= 0).all()
        assert not found.scores[image, count:].any()
        assert not found.boxes[image, count:].any()
        assert (found.classes[image, count:] == -1).all()


def test_most_likely_pairs():
    """As a sort of all pairs, of which many are equal; also if there are too few."""
    rng, find = np.random.default_rng(0), jax.jit(_most_likely, static_argnums=1)
    for count in (7, 50, 1000):
        probabilities = rng.integers(0, 9, (30, 5)) / 8
        highest, points, classes = find(jnp.asarray(probabilities), count)
        order = np.argsort(-probabilities.ravel(), kind="stable")[:count]
        np.testing.assert_array_equal(highest, probabilities.ravel()[order])
        np.testing.assert_array_equal(points, order // 5)
        np.testing.assert_array_equal(classes, order % 5)


def head_losses(outputs, truths, **fields):
    head = FCOSHead(num_classes=K, regression_limits=LIMITS, **fields)
    return head.losses(outputs, STRIDES, truths)


@jax.jit
def losses_and_gradients(outputs, truths):
    def total(outputs):
        losses = head_losses(outputs, truths)
        return sum(losses.values()), losses

    (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(outputs)
    return losses, gradients


@jax.jit
def targets_of(truths):
    return fcos_targets(pyramid_points(SIZES, STRIDES), truths, K, LIMITS)


def test_losses_by_definition():
    """In NumPy from the targets, whose test is above."""
    outputs, truths = random_outputs(3), random_truths(5)
    losses, _ = losses_and_gradients(outputs, truths)
    targets = targets_of(truths)
    logits, distances, centerness = (
        np.concatenate([np.float64(x).reshape(2, -1, x.shape[-1]) for x in levels], axis=1)
        for levels in outputs
    )
    classes = np.asarray(targets.classes)
    positive = classes < K
    count = positive.sum()
    assert count > 20
    probabilities = 1 / (1 + np.exp(-logits))
    one_hot = classes[..., None] == np.arange(K)
    focal = np.where(
        one_hot,
        -0.25 * (1 - probabilities) ** 2 * np.log(probabilities),
        -0.75 * probabilities**2 * np.log(1 - probabilities),
    )
    weights = np.float64(targets.centerness)[positive]
    boxes = [
        [(-left, -top, right, bottom) for left, top, right, bottom in each[positive]]
        for each in (distances, np.float64(targets.distances))
    ]
    ious = np.array([overlap(*pair) for pair in zip(*boxes, strict=True)])
    chances = 1 / (1 + np.exp(-centerness[..., 0][positive]))
    entropy = -(weights * np.log(chances) + (1 - weights) * np.log(1 - chances))
    expected = {
        "loss_cls": focal.sum() / count,
        "loss_bbox": (-np.log(ious) * weights).sum() / weights.sum(),
        "loss_centerness": entropy.sum() / count,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5, err_msg=name)
        assert losses[name].dtype == jnp.float32


def test_no_objects_in_the_batch():
    """Only the loss of the classes is left; gradients are finite and those of the boxes 0."""
    truths = random_truths(0)
    truths = truths._replace(valid=jnp.zeros_like(truths.valid))
    losses, gradients = losses_and_gradients(random_outputs(0), truths)
    assert losses["loss_cls"] > 0
    assert losses["loss_bbox"] == losses["loss_centerness"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.any(leaf) for leaf in gradients.logits)
    assert not any(np.any(leaf) for leaf in (*gradients.distances, *gradients.centerness))


def test_extreme_outputs_have_finite_gradients():
    """Overflow of exp at background points, and boxes of no size at positive ones."""
    outputs, truths = random_outputs(1), random_truths(1)
    positive = targets_of(truths).classes < K
    start = 0
    levels = []
    for x, (rows, columns) in zip(outputs.distances, SIZES, strict=True):
        of_level = positive[:, start : start + rows * columns].reshape(2, rows, columns, 1)
        levels.append(jnp.broadcast_to(jnp.where(of_level, 0, jnp.inf), x.shape))
        start += rows * columns
    logits = tuple(jnp.where(x > 0, 200, -200) * jnp.ones_like(x) for x in outputs.logits)
    extreme = outputs._replace(distances=tuple(levels), logits=logits)
    losses, gradients = losses_and_gradients(extreme, truths)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradients)))
    assert losses["loss_bbox"] == pytest.approx(-np.log(1e-6), rel=1e-5)


def test_masks_and_the_order_of_the_objects_do_not_matter():
    outputs, truths = random_outputs(4), random_truths(7)
    # Of equally small boxes the first is chosen: let there be none.
    truths = truths._replace(valid=truths.valid.at[:, 1].set(False))
    masks = jnp.ones((2, 9, 104, 21), jnp.uint8)
    expected, _ = losses_and_gradients(outputs, truths)
    turned = jax.tree.map(lambda x: x[:, ::-1], truths)
    actual, _ = losses_and_gradients(outputs, turned)
    with_masks = jax.make_jaxpr(head_losses)(outputs, truths._replace(masks=masks))
    *_, masks_of_program = with_masks.jaxpr.invars
    assert not any(masks_of_program in equation.invars for equation in with_masks.eqns)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6)
