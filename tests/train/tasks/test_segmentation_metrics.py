"""mIoU and its like, against mmsegmentation's numbers and scikit-learn's confusion matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as by_scikit_learn

from replk_jax.vision.label_sets import IGNORED
from tests import reference_data
from tests.helpers import data_mesh
from train.engine import parallel
from train.engine.task import add_in_64_bits
from train.tasks.segmentation_metrics import by_class, confusion_matrix, scores


def counted(predicted, labels, classes, mask=None):
    """The matrix of all images, in 64 bits."""
    mask = np.ones(len(labels), bool) if mask is None else mask
    count = jax.jit(confusion_matrix, static_argnums=3)
    return add_in_64_bits(None, np.asarray(count(predicted, labels, mask, classes)))


@reference_data.required
@pytest.mark.parametrize("variant", ["plain", "reduce_zero"])
def test_the_scores_of_mmsegmentation(variant):
    """It adds up and divides in float32: ratios agree within its rounding, 1e-6."""
    expected = {
        name.removeprefix(f"{variant}/"): value
        for name, value in reference_data.arrays("downstream/segmentation/small/miou.npz").items()
        if name.startswith(f"{variant}/")
    }
    truth = expected["truth"]
    if variant == "reduce_zero":
        truth = np.where((truth == 0) | (truth == IGNORED), IGNORED, truth - 1).astype(np.uint8)
    classes = len(expected["IoU"])
    total = None
    for image, label in zip(expected["prediction"], truth, strict=True):
        more = counted(image[None], label[None], classes)
        total = more if total is None else total + more
    np.testing.assert_array_equal(np.diag(total), expected["intersect"].sum(0))
    np.testing.assert_array_equal(total.sum(1), expected["label_area"].sum(0))
    np.testing.assert_array_equal(total.sum(0), expected["pred_area"].sum(0))
    found = scores(total)
    assert found.keys() == {"mIoU", "mAcc", "aAcc"}
    for name, value in found.items():
        assert value == pytest.approx(float(expected[name]), rel=1e-6)
    table = by_class(total, [str(i) for i in range(classes)])
    for column in ("IoU", "Acc"):
        for row, value in zip(table.values(), expected[column], strict=True):
            if np.isnan(value):
                assert row[column] is None
            else:
                assert row[column] == pytest.approx(float(value), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0, 1))
def test_the_matrix_of_scikit_learn(seed, classes, ignored):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (3, 5, 4)).astype(np.uint8)
    labels[rng.random(labels.shape) < ignored] = IGNORED
    predicted = rng.integers(0, classes, labels.shape).astype(np.uint8)
    mask = np.array([True, False, True])
    counts = (labels != IGNORED) & mask[:, None, None]
    expected = np.zeros((classes, classes), int)
    if counts.any():
        expected = by_scikit_learn(labels[counts], predicted[counts], labels=range(classes))
    found = np.asarray(confusion_matrix(predicted, labels, mask, classes))
    np.testing.assert_array_equal(found, expected)


def test_several_devices_count_whole_numbers():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, (2, 8, 5, 4)).astype(np.uint8)
    sharding = parallel.batch_sharding(data_mesh(8))
    arrays = [jax.device_put(array, sharding) for array in (predicted, labels, np.ones(8, bool))]
    count = jax.jit(confusion_matrix, static_argnums=3)
    found = count(*arrays, 3)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, counted(predicted, labels, 3))


def test_more_pixels_than_32_bits_count():
    """A class with 3 billion pixels, over batches; one batch is refused before it overflows."""
    batch = np.array([[2**31 - 1, 0], [0, 5]], np.int32)
    total = add_in_64_bits(add_in_64_bits(None, batch), batch)
    assert scores(total)["mIoU"] == 1
    assert total[0, 0] == 2**32 - 2
    too_many = jax.ShapeDtypeStruct((1024, 2048, 1024), jnp.uint8)
    mask = jax.ShapeDtypeStruct((1024,), bool)
    with pytest.raises(ValueError, match=r"lower --config\.eval_batch_size"):
        jax.eval_shape(lambda *args: confusion_matrix(*args, 3), too_many, too_many, mask)


def test_no_labelled_pixel_and_one_class():
    nothing = scores(np.zeros((2, 2), np.int64))
    assert all(np.isnan(value) for value in nothing.values())
    assert by_class(np.zeros((1, 1), np.int64), ["road"]) == {"road": {"IoU": None, "Acc": None}}
    assert scores(np.array([[7]])) == {"mIoU": 1, "mAcc": 1, "aAcc": 1}
