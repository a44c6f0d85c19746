"""Losses of segmentation, against the reference data and float64 by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from replk_jax.torch_import import names
from replk_jax.vision.label_sets import IGNORED
from tests import reference_data
from tests.helpers import data_mesh
from tests.segmentation import golden
from train.engine import parallel
from train.tasks import segmentation_losses
from train.tasks.padded_images import normalized
from train.tasks.segmentation_losses import (
    HardPixels,
    PixelCrossEntropy,
    SegmentationLoss,
    pixel_losses,
)


def loss_of_inputs(model, variables, **fields):
    """The loss of normalised images, and the running statistics after it."""
    align = PixelCrossEntropy(model.align_corners, **fields)

    def loss(params, inputs, labels):
        after = {}

        def forward(_):
            outputs, updates = model.apply(
                {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            after.update(updates)
            return outputs

        # The reference data starts with normalised images, so those of the batch do not matter.
        batch = {
            "image": jnp.zeros(inputs.shape, jnp.uint8),
            "mask": labels,
            "valid_size": jnp.broadcast_to(jnp.array(inputs.shape[1:3]), (len(inputs), 2)),
        }
        whole = SegmentationLoss((0.5,) * 3, (0.5,) * 3, np.dtype(np.float32), align, align)
        total, terms = whole(forward, jax.random.key(0), batch)
        return total, (terms, after["batch_stats"])

    return loss


def no_dropout(model):
    heads = {
        n: getattr(model, n).clone(dropout_rate=0.0) for n in ("decode_head", "auxiliary_head")
    }
    return model.clone(**heads)


@reference_data.required
@pytest.mark.slow
def test_a_training_step_of_mmsegmentation():
    """README: 1e-5 for losses, 1e-3 of the largest value for gradients, absolute below 1e-6."""
    expected = golden.load("train")
    inputs = expected["input"]
    labels = expected["label"].reshape(2, *inputs.shape[1:3])
    model, variables = golden.tiny_upernet()
    loss = loss_of_inputs(no_dropout(model), variables)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (terms, after)), grads = gradient(variables["params"], inputs, labels)
    assert float(total) == pytest.approx(expected["total"], rel=1e-5)
    assert terms.keys() == {"decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    for name, value in terms.items():
        assert float(value) == pytest.approx(expected[f"loss/{name}"].item(), rel=1e-5)

    actual = reference_data.by_official_name({"params": grads})
    compared = golden.section(expected, "grad/")
    assert len(compared) > 30
    for name, value in compared.items():
        bound = 1e-6 if np.abs(value).max() < 1e-6 else 1e-3 * np.abs(value).max()
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=bound, err_msg=name)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    assert norm == pytest.approx(float(expected["grad_norm_all"]), rel=1e-3)
    statistics = reference_data.by_official_name({"batch_stats": after})
    for name, value in golden.section(expected, "after/").items():
        if not name.endswith(names.COUNTER):
            reference_data.assert_close(statistics[name], value, 5e-5, name)


@reference_data.required
@pytest.mark.parametrize(
    ("variant", "align_corners", "fields"),
    [("loss_avg_non_ignore", False, {"avg_non_ignore": True}), ("loss_ac1", True, {})],
)
def test_variants_of_the_loss(variant, align_corners, fields):
    expected = golden.load("train")
    labels = expected["label"].reshape(2, *expected["input"].shape[1:3])
    model, variables = golden.tiny_upernet(align_corners=align_corners)
    loss = jax.jit(loss_of_inputs(no_dropout(model), variables, **fields))
    _, (terms, _) = loss(variables["params"], expected["input"], labels)
    for name, value in golden.section(expected, f"{variant}/").items():
        assert float(terms[name]) == pytest.approx(value.item(), rel=1e-5)


def by_hand(logits, labels, *, avg_non_ignore=False, weights=None, kept=None):
    """The loss in float64, for logits of the size of the labels."""
    log_p = log_softmax(np.float64(logits), -1)
    total, count = 0.0, 0
    for pixel in np.ndindex(labels.shape):
        if labels[pixel] != IGNORED:
            count += 1
            if kept is None or kept[pixel]:
                weight = 1 if weights is None else weights[labels[pixel]]
                total -= weight * log_p[pixel][labels[pixel]]
    return total / (count if avg_non_ignore else labels.size)


def example(seed=0, size=(9, 7), classes=5, batch=2):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, *size, classes)).astype(np.float32) * 3
    labels = rng.integers(0, classes, (batch, *size)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    return logits, labels


@pytest.mark.parametrize("avg_non_ignore", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_means_and_class_weights(avg_non_ignore, weighted):
    logits, labels = example()
    weights = (0.5, 2.0, 0.0, 1.0, 3.0) if weighted else ()
    loss, accuracy = PixelCrossEntropy(False, avg_non_ignore, weights)(logits, labels)
    expected = by_hand(logits, labels, avg_non_ignore=avg_non_ignore, weights=weights or None)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    hits = (logits.argmax(-1) == labels).sum() / (labels != IGNORED).sum()
    assert float(accuracy) == pytest.approx(100 * hits, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        PixelCrossEntropy(),
        PixelCrossEntropy(avg_non_ignore=True),
        PixelCrossEntropy(hard_pixels=HardPixels(3)),
        PixelCrossEntropy(hard_pixels=HardPixels(3, 0.7), avg_non_ignore=True),
        PixelCrossEntropy(class_weights=(1.0,) * 5),
    ],
    ids=["all", "not ignored", "hard", "below a threshold", "weighted"],
)
def test_an_image_of_ignored_pixels(loss):
    """Loss 0, accuracy 100 as in mmsegmentation, gradients 0."""
    logits, labels = example()
    ignored = np.full_like(labels, IGNORED)
    (value, accuracy), gradient = jax.value_and_grad(
        lambda logits: loss(logits, ignored), has_aux=True
    )(jnp.asarray(logits))
    assert (float(value), float(accuracy)) == (0, 100)
    np.testing.assert_array_equal(gradient, 0)
    if reference_data.ROOT.is_dir():
        expected = golden.section(golden.load("train"), "loss_all_ignored/")
        assert {k: v.item() for k, v in expected.items()} == {"loss_ce": 0, "acc_seg": 100}


def hardest(logits, labels, min_kept, threshold):
    """Which pixels mmsegmentation's OHEMPixelSampler keeps, by its documentation."""
    probability = np.exp(log_softmax(np.float64(logits), -1))
    own = np.take_along_axis(probability, np.minimum(labels, 4)[..., None].astype(int), -1)[..., 0]
    valid = labels != IGNORED
    kept = min_kept * len(labels)
    if threshold is None:
        order = sorted(np.argwhere(valid).tolist(), key=lambda pixel: own[tuple(pixel)])
        chosen = np.zeros(labels.shape, bool)
        for pixel in order[:kept]:
            chosen[tuple(pixel)] = True
        return chosen
    ranked = np.sort(own[valid])
    return valid & (own < max(ranked[min(kept, len(ranked) - 1)], threshold))


@pytest.mark.parametrize("min_kept", [1, 10, 1000])
@pytest.mark.parametrize("threshold", [None, 0.05, 0.7])
def test_hard_pixels(min_kept, threshold):
    logits, labels = example()
    loss = PixelCrossEntropy(hard_pixels=HardPixels(min_kept, threshold))
    kept = hardest(logits, labels, min_kept, threshold)
    assert 0 < kept.sum() < labels.size
    expected = by_hand(logits, labels, kept=kept)
    assert float(loss(jnp.asarray(logits), labels)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((3, 4), (13, 10)),
        pytest.param((5, 5), (3, 2), marks=pytest.mark.exhaustive),
        pytest.param((1, 1), (7, 5), marks=pytest.mark.exhaustive),
    ],
)
def test_chunks_of_rows(monkeypatch, align_corners, size, target):
    """Values and gradients do not depend on how many rows are computed at a time."""
    logits, _ = example(size=size)
    _, labels = example(1, size=target)

    def computed(elements):
        monkeypatch.setattr(segmentation_losses, "_CHUNK_ELEMENTS", elements)

        def total(logits):
            losses, correct = pixel_losses(logits, labels, align_corners)
            return (losses * jnp.arange(losses.size).reshape(losses.shape)).sum(), (losses, correct)

        (_, results), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
        return *results, gradient

    whole = computed(10**9)
    for rows in (1, 4):
        for actual, expected in zip(computed(rows * target[1] * 5), whole, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_resized_logits_are_not_kept():
    """The memory of the gradient grows with the rows at a time, not with the whole image."""
    logits = jax.ShapeDtypeStruct((2, 32, 32, 150), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 128, 128), jnp.uint8)
    resized = 4 * 2 * 128 * 128 * 150

    def memory(elements):
        segmentation_losses._CHUNK_ELEMENTS, before = elements, segmentation_losses._CHUNK_ELEMENTS
        try:
            gradient = jax.jit(jax.grad(lambda x, y: PixelCrossEntropy()(x, y)[0]))
            return gradient.lower(logits, labels).compile().memory_analysis().temp_size_in_bytes
        finally:
            segmentation_losses._CHUNK_ELEMENTS = before

    assert memory(8 * 128 * 150) < resized / 4 < resized < memory(10**9)


def test_the_loss_of_several_devices_is_that_of_one():
    logits, labels = example(batch=8)
    loss = PixelCrossEntropy(avg_non_ignore=True, hard_pixels=HardPixels(5, 0.3))
    values = []
    for devices in (1, 4):
        sharding = parallel.batch_sharding(data_mesh(devices))
        arguments = [jax.device_put(array, sharding) for array in (logits, labels)]
        values.append(jax.jit(loss)(*arguments))
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_padding_is_zero_after_normalising():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    result = normalized(images, np.array([[4, 5], [2, 3]]), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    expected[1, 2:] = expected[1, :, 3:] = 0
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
