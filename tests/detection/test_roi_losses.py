"""The losses of RoI heads, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.roi_losses import box_head_losses, mask_loss
from replk_jax.detection.roi_targets import Rois

STDS = (0.1, 0.1, 0.2, 0.2)
CLASSES = 3
RUN = jax.jit(box_head_losses, static_argnames="box_loss")


def random_rois(generator):
    """Two images with 3 and 0 positive boxes of 8, and 1 and 3 of padding."""
    low = generator.uniform(0, 50, (2, 8, 2))
    boxes = np.concatenate([low, low + generator.uniform(5, 40, low.shape)], axis=-1)
    targets = boxes + generator.uniform(-2, 2, boxes.shape)
    positive = np.arange(8) < np.asarray([[3], [0]])
    valid = np.arange(8) < np.asarray([[7], [5]])
    labels = np.where(positive, generator.integers(0, CLASSES, (2, 8)), CLASSES)
    return Rois(
        np.where(valid[..., None], boxes, 0).astype(np.float32),
        labels.astype(np.int32),
        np.where(positive, 0, -1),
        np.where(positive[..., None], targets, 0).astype(np.float32),
        positive,
        valid,
        np.zeros_like(valid),
    )


def encoded(box, target):
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    wanted, wanted_size = (target[:2] + target[2:]) / 2, target[2:] - target[:2]
    return np.concatenate([(wanted - centre) / size, np.log(wanted_size / size)]) / STDS


def by_loops(logits, deltas, rois, beta):
    """Class loss, accuracy and box loss."""
    class_loss = right = box_loss = 0.0
    for image, i in np.argwhere(rois.valid):
        scores, label = logits[image, i].astype(float), rois.labels[image, i]
        class_loss += np.log(np.exp(scores).sum()) - scores[label]
        right += scores.argmax() == label
        if rois.positive[image, i]:
            own = deltas[image, i, label if deltas.shape[2] > 1 else 0].astype(float)
            distance = np.abs(
                own
                - encoded(*(each[image, i].astype(float) for each in (rois.boxes, rois.targets)))
            )
            if beta:
                square = 0.5 * distance**2 / beta
                distance = np.where(distance < beta, square, distance - 0.5 * beta)
            box_loss += distance.sum()
    number = rois.valid.sum()
    return {
        "loss_cls": class_loss / number,
        "acc": 100 * right / number,
        "loss_bbox": box_loss / number,
    }


@pytest.mark.parametrize(
    ("box_loss", "beta", "kinds"), [("l1", 0, CLASSES), ("smooth_l1", 1, CLASSES), ("l1", 0, 1)]
)
def test_losses_of_offsets(box_loss, beta, kinds):
    generator = np.random.default_rng(0)
    rois = random_rois(generator)
    logits = generator.standard_normal((2, 8, CLASSES + 1)).astype(np.float32)
    deltas = generator.standard_normal((2, 8, kinds, 4)).astype(np.float32)
    actual = RUN(logits, deltas, rois, STDS, box_loss=box_loss)
    expected = by_loops(logits, deltas, rois, beta)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_gradients_of_padding_are_zero(box_loss):
    """Not NaN: padding has no size."""
    generator = np.random.default_rng(1)
    rois = random_rois(generator)
    logits = generator.standard_normal((2, 8, CLASSES + 1)).astype(np.float32)
    deltas = generator.standard_normal((2, 8, CLASSES, 4)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(outputs):
        losses = box_head_losses(*outputs, rois, STDS, box_loss)
        return losses["loss_cls"] + losses["loss_bbox"]

    of_logits, of_deltas = map(np.asarray, gradient((logits, deltas)))
    assert not np.any(of_logits[~rois.valid])
    assert not np.any(of_deltas[~rois.positive])
    assert np.all(np.any(of_logits[rois.valid], axis=-1))
    for image, i in np.argwhere(rois.positive):
        others = np.arange(CLASSES) != rois.labels[image, i]
        assert not np.any(of_deltas[image, i, others])
        assert np.any(of_deltas[image, i, ~others])


def test_mask_loss():
    generator = np.random.default_rng(2)
    logits = generator.standard_normal((4, 3, 3)).astype(np.float32)
    targets = generator.random((4, 3, 3)) < 0.5
    positive = np.asarray([True, False, True, False])
    probabilities = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -np.log(np.where(targets, probabilities, 1 - probabilities))[positive].mean()
    np.testing.assert_allclose(mask_loss(logits, targets, positive), expected, rtol=1e-6)
    assert mask_loss(logits, targets, jnp.zeros(4, bool)) == 0
