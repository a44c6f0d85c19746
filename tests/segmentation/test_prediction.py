"""Prediction at the original size: the reference data, and a plain reference in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.models.summary import planned_memory
from replk_jax.segmentation import prediction
from replk_jax.segmentation.prediction import (
    View,
    Windows,
    class_maps,
    class_probabilities,
    class_scores,
    finite_logits,
    place_windows,
    score_matrices,
    side_by_side,
)
from tests import reference_data
from tests.segmentation import golden

pytestmark = pytest.mark.usefixtures("strict_promotion")


# --- The reference data -------------------------------------------------------------------


@functools.cache
def network():
    model, variables = golden.tiny_upernet()
    return jax.jit(lambda images: model.apply(variables, images))


def view(images, original, *, window=None, stride=0, flipped=False, valid=None):
    """One view of normalised images (N, H, W, C) through the network of the reference data."""
    if flipped:
        images = images[:, :, ::-1]
    windows = place_windows(images.shape[1:3], window, stride)
    logits = network()(np.concatenate([windows.cut(image) for image in images]))
    rows, columns = score_matrices(
        windows, logits.shape[1:3], valid or images.shape[1:3], original, False, flipped=flipped
    )
    stacked = (np.repeat(matrix[None], len(images), 0) for matrix in (rows, columns))
    return View(side_by_side(logits, windows.grid), *stacked)


def assert_scores(actual, expected):
    """Within 5e-5 of the largest value: the limit of the reference data for float32."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


def assert_same_classes(actual, expected, but=0):
    """At most `but` pixels may differ, where the two best classes are as good as equal."""
    assert actual.dtype == np.uint8
    assert np.sum(np.asarray(actual) != expected) <= but


@reference_data.required
def test_the_whole_test_is_that_of_mmsegmentation():
    case = golden.load("whole_even")
    seen = view(case["input"], (64, 96))
    assert_scores(class_scores(seen), case["resized_logits_ac0"])
    np.testing.assert_allclose(class_probabilities([seen]), case["probabilities_ac0"], atol=1e-4)
    assert_same_classes(class_maps([seen]), case["prediction_ac0"], but=2)


@reference_data.required
@pytest.mark.parametrize("align_corners", [False, True])
def test_resized_logits_are_those_of_mmsegmentation(align_corners):
    case, name = golden.load("whole_even"), f"ac{align_corners:d}"
    size, logits = (64, 96), case[f"decode_logits_{name}"]
    matrices = score_matrices(place_windows(size), (16, 24), size, size, align_corners)
    seen = View(logits, *(np.repeat(matrix[None], 2, 0) for matrix in matrices))
    assert_scores(class_scores(seen), case[f"resized_logits_{name}"])
    assert_same_classes(class_maps([seen]), case[f"prediction_{name}"], but=2)


@reference_data.required
def test_the_sliding_test_is_that_of_mmsegmentation():
    case = golden.load("slide_ac0")
    seen = view(case["input"], (90, 150), window=64, stride=43)
    assert_scores(class_scores(seen), case["logits_ac0"])
    seen = view(case["input"], (113, 187), window=64, stride=43)
    assert_scores(class_scores(seen), case["logits_rescaled_ac0"])
    expected = case["probabilities_rescaled_ac0"]
    np.testing.assert_allclose(class_probabilities([seen]), expected, atol=1e-4)
    assert_same_classes(class_maps([seen])[0], case["prediction_rescaled_ac0"], but=2)


@reference_data.required
def test_a_side_shorter_than_the_window_is_used_as_it_is():
    case = golden.load("slide_small_image")
    seen = view(case["small_input"], (50, 120), window=64, stride=43)
    assert_scores(class_scores(seen), case["small_logits"])


@reference_data.required
def test_several_views_are_those_of_mmsegmentation():
    case = golden.load("multiscale_flip")
    views = [
        view(case[f"image_{i}"], (70, 110), flipped=flipped)
        for i in range(3)
        for flipped in (False, True)
    ]
    scores, average, classes = jax.jit(all_results)(views)
    stored = {"0_plain": 0, "0_flip": 1, "1_plain": 2, "2_flip": 5}
    for name, i in stored.items():
        expected = case[f"probabilities_{name}"]
        np.testing.assert_allclose(softmax(np.float64(scores[i])), expected, atol=1e-4)
    np.testing.assert_allclose(average, case["average"], atol=1e-4)
    assert_same_classes(classes[0], case["prediction"], but=2)


@reference_data.required
def test_the_scores_of_padding_are_cut_off():
    case = golden.load("multiscale_flip")
    seen = view(case["padded_input"], (70, 110), valid=(60, 90))
    assert_scores(class_scores(seen), case["padded_logits_rescaled"])


# --- Windows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "window", "stride", "starts"),
    [
        (90, 64, 43, (0, 26)),
        (150, 64, 43, (0, 43, 86)),
        (151, 64, 43, (0, 43, 86, 87)),
        (64, 64, 43, (0,)),
        (65, 64, 43, (0, 1)),
        (50, 64, 43, (0,)),
        (128, 64, 64, (0, 64)),
    ],
)
def test_positions_of_windows(side, window, stride, starts):
    windows = place_windows((side, 10), window, stride)
    assert windows == Windows((min(side, window), 10), starts, (0,))
    assert (windows.grid, windows.count) == ((len(starts), 1), len(starts))
    # The number of mmsegmentation.
    assert len(starts) == max(side - window + stride - 1, 0) // stride + 1


def test_cut_windows():
    image = np.arange(6 * 9 * 1).reshape(6, 9, 1)
    windows = place_windows((6, 9), 4, 3)
    assert (windows.tops, windows.lefts) == ((0, 2), (0, 3, 5))
    cut = windows.cut(image)
    assert cut.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(cut[4], image[2:6, 3:7])


# --- A plain reference --------------------------------------------------------------------


def interpolated(array, size, align_corners):
    """Bilinear resizing of (h, w, K), pixel by pixel in float64."""
    result = array
    for axis, length in enumerate(size):
        old = array.shape[axis]
        values = np.moveaxis(result, axis, 0)
        new = []
        for i in range(length):
            if align_corners:
                at = i * (old - 1) / (length - 1) if length > 1 else 0.0
            else:
                at = max((i + 0.5) * old / length - 0.5, 0.0)
            low = int(at)
            high = min(low + 1, old - 1)
            new.append(values[low] * (1 - (at - low)) + values[high] * (at - low))
        result = np.moveaxis(np.stack(new), 0, axis)
    return result


def plain_scores(logits, windows, valid, original, align_corners, flipped):
    """The scores (H, W, K) from the logits (n, h, w, K) of the windows of one image."""
    total = np.zeros((*valid, logits.shape[-1]))
    count = np.zeros((*valid, 1))
    places = [(y, x) for y in windows.tops for x in windows.lefts]
    for one, (y, x) in zip(logits, places, strict=True):
        part = interpolated(np.float64(one), windows.size, align_corners)
        part = part[: valid[0] - y, : valid[1] - x]
        total[y : y + windows.size[0], x : x + windows.size[1]] += part
        count[y : y + windows.size[0], x : x + windows.size[1]] += 1
    scores = interpolated(total / count, original, align_corners)
    return scores[:, ::-1] if flipped else scores


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def random_case(seed, images=2, classes=5):
    """Views of random geometry with random logits, and the plain scores of each."""
    rng = np.random.default_rng(seed)
    original = tuple(int(side) for side in rng.integers(1, 60, 2))
    align_corners = bool(seed % 2)
    views, expected = [], []
    for _ in range(rng.integers(1, 4)):
        size = tuple(int(side) for side in rng.integers(1, 50, 2))
        window = int(rng.integers(1, 40)) if rng.random() < 0.7 else None
        windows = place_windows(size, window, window and int(rng.integers(1, window + 1)))
        valid = size
        if window is None:
            valid = tuple(int(rng.integers(1, side + 1)) for side in size)
        logits_size = tuple(-(-side // int(rng.integers(1, 9))) for side in windows.size)
        flipped = bool(rng.integers(2))
        shape = (images, windows.count, *logits_size, classes)
        logits = rng.standard_normal(shape).astype(np.float32)
        padded = (original[0] + 5, original[1] + 3)
        matrices = score_matrices(
            windows, logits_size, valid, original, align_corners, flipped=flipped,
            padded_size=padded,
        )  # fmt: skip
        rows, columns = (np.repeat(matrix[None], images, 0) for matrix in matrices)
        flat = jnp.asarray(logits.reshape(-1, *logits.shape[2:]))
        views.append(View(side_by_side(flat, windows.grid), rows, columns))
        expected.append(
            [plain_scores(one, windows, valid, original, align_corners, flipped) for one in logits]
        )
    return views, np.asarray(expected), original


@pytest.mark.parametrize("chunk_bytes", [1 << 26, 4096], ids=["at once", "in chunks"])
@pytest.mark.parametrize("seed", range(2))
def test_scores_and_probabilities_of_random_views(seed, chunk_bytes, monkeypatch):
    monkeypatch.setattr(prediction, "_CHUNK_BYTES", chunk_bytes)
    views, expected, (height, width) = random_case(seed)
    scores, probabilities, classes = jax.jit(all_results)(views)
    for actual, scores_of_view in zip(scores, expected, strict=True):
        # Sums of up to nine products of float32, of values up to about 5.
        assert actual.shape == (2, height + 5, width + 3, 5)
        np.testing.assert_allclose(actual[:, :height, :width], scores_of_view, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(actual[:, height:], 0)
        np.testing.assert_array_equal(actual[:, :, width:], 0)
    mean = softmax(expected).mean(0)
    actual = probabilities[:, :height, :width]
    np.testing.assert_allclose(actual, mean, rtol=0, atol=1e-5)
    best, second = np.moveaxis(np.sort(mean, -1)[..., -2:], -1, 0)[::-1]
    clear = best - second > 1e-4
    assert clear.mean() > 0.9
    predicted = np.asarray(classes)[:, :height, :width]
    np.testing.assert_array_equal(predicted[clear], mean.argmax(-1)[clear])


def all_results(views):
    return [class_scores(view) for view in views], class_probabilities(views), class_maps(views)


def test_one_window_over_the_image_is_the_whole_test():
    for size in ((33, 47), (40, 40)):
        whole = place_windows(size)
        for window in (47, 60):
            assert place_windows(size, window, 20) == whole


def test_the_first_of_equal_classes():
    """At rows with equal scores, and where all scores are zero."""
    logits = np.zeros((1, 2, 2, 4), np.float32)
    logits[0, 0, :, 2:] = 3
    eye = np.eye(2, dtype=np.float32)[None]
    np.testing.assert_array_equal(class_maps([View(logits, eye, eye)]), [[[2, 2], [0, 0]]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_found(bad):
    logits = np.zeros((3, 2, 2, 4), np.float32)
    eye = np.broadcast_to(np.eye(2, dtype=np.float32), (3, 2, 2))
    bad_logits = logits.copy()
    bad_logits[1, 0, 1, 3] = bad
    views = [View(logits, eye, eye), View(bad_logits, eye, eye)]
    np.testing.assert_array_equal(finite_logits(views), [True, False, True])


def test_a_class_map_has_at_most_255_classes():
    eye = np.ones((1, 1, 1), np.float32)
    logits = np.arange(255, dtype=np.float32)[None, None, None]
    np.testing.assert_array_equal(class_maps([View(logits, eye, eye)]), [[[254]]])
    more = np.zeros((1, 1, 1, 256), np.float32)
    with pytest.raises(ValueError, match="at most 255 classes; got 256"):
        class_maps([View(more, eye, eye)])


@pytest.mark.parametrize("count", [1, 4])
def test_memory_grows_with_the_pixels_and_not_with_the_classes(count):
    """A photograph of 12 megapixels and 150 classes: all scores of a view would take 7.2 GB."""
    shapes = {"logits": (1, 128, 171, 150), "rows": (1, 3000, 128), "columns": (1, 4000, 171)}
    seen = View(**{k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    compiled = jax.jit(class_maps).lower([seen] * count).compile()
    arguments = count * sum(4 * np.prod(shape) for shape in shapes.values())
    # The arguments, again with their axes exchanged; the class map, twice for the same reason; and
    # a few chunks of the scores.
    limit = 2 * arguments + 2 * 12e6 + 5 * prediction._CHUNK_BYTES
    assert planned_memory(compiled) < limit < 7.2e9 / 10
