"""Segmenter: from images to class maps."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax import SegmentationProtocol, Segmenter
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.inference.bounded_jit import BoundedJit
from replk_jax.vision import label_sets
from replk_jax.vision.base_preprocessing import normalize
from replk_jax.vision.images import ImageError
from tests.helpers import TINY, random_variables
from tests.segmentation.test_prediction import plain_scores, softmax
from tests.vision.test_images import UPRIGHT, encoded, picture, turned_by

pytestmark = pytest.mark.usefixtures("strict_promotion")

WHOLE = SegmentationProtocol((64, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SLIDING = SegmentationProtocol((64, 32), window=24, stride=16)
NAMES = ("sky", "tree", "road", "car", "dog")


@functools.cache
def network(align_corners=False):
    model = replk_jax.create_segmenter(
        "fcn", TINY, 5, channels=8, auxiliary_channels=4, align_corners=align_corners
    )
    return model, random_variables(model)


@functools.cache
def segmenter(protocol, batch_size=4, align_corners=False):
    return Segmenter(*network(align_corners), protocol, NAMES, batch_size=batch_size)


@functools.cache
def apply(align_corners):
    model, variables = network(align_corners)
    return jax.jit(lambda images: model.apply(variables, images))


def expected_probabilities(image, protocol, align_corners=False):
    """One window at a time, in the training-time structure; the rest in float64."""
    views = []
    for ratio, flipped in protocol.views:
        pixels = protocol.resized_pixels(image, ratio=ratio)
        windows = protocol.windows(pixels.shape[:2])
        seen = pixels[:, ::-1] if flipped else pixels
        seen = normalize(np.ascontiguousarray(seen), protocol.mean, protocol.std)
        logits = [apply(align_corners)(part[None])[0] for part in windows.cut(seen)]
        scores = plain_scores(
            np.stack(logits), windows, pixels.shape[:2], image.shape[:2], align_corners, flipped
        )
        views.append(softmax(scores))
    return np.mean(views, 0)


def assert_segments(some, images, protocol, align_corners=False):
    classes, probabilities = some(images), some.probabilities(images)
    assert len(classes) == len(probabilities) == len(images)
    for image, predicted, scores in zip(images, classes, probabilities, strict=True):
        expected = expected_probabilities(image, protocol, align_corners)
        assert (predicted.dtype, predicted.shape) == (np.uint8, image.shape[:2])
        assert (scores.dtype, scores.shape) == (np.float32, expected.shape)
        # Merging changes logits of about 1 by float32's rounding.
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-4)
        ordered = np.sort(expected, -1)
        clear = ordered[..., -1] - ordered[..., -2] > 1e-3
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(predicted[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("protocol", [WHOLE, SLIDING], ids=["whole", "sliding"])
def test_images_of_different_sizes(protocol):
    """Two of one size, one of another with the same resized size, and one with a short side."""
    sizes = [(40, 60), (80, 120), (40, 60), (80, 20)]
    images = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    assert_segments(segmenter(protocol), images, protocol)


def test_several_scales_and_flips():
    protocol = SegmentationProtocol((64, 32), window=32, stride=20, ratios=(0.75, 1.5), flip=True)
    images = [picture(45, 61, seed=1), picture(45, 61, seed=2)]
    assert_segments(segmenter(protocol, 3, True), images, protocol, True)


def test_one_window_is_the_whole_test():
    image = picture(40, 60)
    whole = SegmentationProtocol((64, 32))
    sliding = SegmentationProtocol((64, 32), window=48, stride=10)
    probabilities = [segmenter(p).probabilities(image)[0] for p in (whole, sliding)]
    np.testing.assert_array_equal(*probabilities)


def test_images_of_every_kind(tmp_path):
    pixels = picture(45, 39)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    kinds = [path, str(path), path.read_bytes(), Image.open(path), pixels, jnp.asarray(pixels)]
    some = segmenter(WHOLE)
    expected = some(pixels)[0]
    for classes in some(kinds):
        np.testing.assert_array_equal(classes, expected)
    for alone in (*kinds, pixels[None], [pixels], (pixels,)):
        (classes,) = some(alone)
        np.testing.assert_array_equal(classes, expected)
    assert (some([]), some.probabilities([])) == ([], [])
    with pytest.raises(ImageError, match=r"Cannot read the image .*nowhere\.png"):
        some([path, tmp_path / "nowhere.png"])


def test_from_file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    model, variables = network()
    save(path, Checkpoint(model, variables, SLIDING, NAMES))
    read = Segmenter.from_file(path)
    assert (read.protocol, read.class_names) == (SLIDING, NAMES)
    np.testing.assert_array_equal(read.palette, label_sets.default_palette(5))
    image = picture(40, 60)
    np.testing.assert_array_equal(read(image), segmenter(SLIDING)(image))
    palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
    other = Segmenter.from_file(path, protocol=WHOLE, class_names=NAMES[::-1], palette=palette)
    assert (other.protocol, other.class_names) == (WHOLE, NAMES[::-1])
    np.testing.assert_array_equal(other.palette, palette)


def test_from_file_like_a_published_checkpoint(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save(path, Checkpoint(*network(), SLIDING, NAMES))
    read = Segmenter.from_file(path, like="upernet_replknet_31b_cityscapes.in1k")
    assert (read.protocol, read.class_names) == (SegmentationProtocol((2049, 1025)), NAMES)
    with pytest.raises(ValueError, match="takes a SegmentationProtocol; got a Preprocessing"):
        Segmenter.from_file(path, like="resnet_18")
    with pytest.raises(ValueError, match="Both preprocessing and like"):
        Segmenter.from_file(path, like="upernet_replknet_31b_ade20k.in22k", protocol=WHOLE)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_segmented_upright(orientation):
    """Files and images of Pillow, which have an EXIF orientation; an array has none."""
    pixels = picture(40, 60)
    data = encoded(Image.fromarray(pixels), exif=turned_by(orientation))
    upright = np.ascontiguousarray(UPRIGHT[orientation](pixels))
    some = segmenter(WHOLE)
    expected = some(upright)[0]
    for classes in some([data, Image.open(io.BytesIO(data))]):
        np.testing.assert_array_equal(classes, expected)


def test_names_and_colours():
    model, variables = network()
    assert Segmenter(model, variables, WHOLE).class_names == ("0", "1", "2", "3", "4")
    cityscapes = label_sets.find("cityscapes")
    model = replk_jax.create_segmenter("fcn", TINY, 19, channels=8, auxiliary_channels=None)
    some = Segmenter(model, random_variables(model), WHOLE, cityscapes.class_names)
    np.testing.assert_array_equal(some.palette, cityscapes.palette)


def test_the_program_is_re_parameterized():
    leaves = jax.tree_util.tree_leaves_with_path(segmenter(WHOLE)._variables)
    names = {jax.tree_util.keystr(path) for path, _ in leaves}
    assert not any("batch_stats" in name or "bn" in name for name in names)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_predict_nothing(value, monkeypatch):
    some = segmenter(WHOLE)
    images = [picture(40, 60, seed=seed) for seed in range(3)]
    good = some(images)
    run = some.run_padded
    monkeypatch.setattr(some, "run_padded", lambda pixels: run(pixels).at[1, 0, 0, 3].set(value))
    for predict in (some, some.probabilities):
        with pytest.raises(ValueError, match=r"1 of 3 images are not finite \(index 1\)"):
            predict(images)
    results = some.segment([some.prepare(image) for image in images])
    assert [result.is_finite for result in results] == [True, False, True]
    for i in (0, 2):
        np.testing.assert_array_equal(results[i].classes, good[i])


# --- Compilations -------------------------------------------------------------------------


def test_few_programs_for_many_sizes(monkeypatch):
    """Windows of one size share a program of the network, whatever the sizes of the images."""
    some = Segmenter(*network(), SLIDING, NAMES, batch_size=4)
    batches = []
    run = some.run_padded

    def spy(pixels):
        batches.append(pixels.shape[:3])
        return run(pixels)

    monkeypatch.setattr(some, "run_padded", spy)
    sizes = [(40 + i, 60 + 2 * i) for i in range(12)] + [(60 + i, 41) for i in range(8)]
    some([picture(*size) for size in sizes])
    assert {shape[1:] for shape in batches} == {(24, 24)}
    # Batches of at most 4 windows: 1, 2 or 4 of them.
    assert some._program.compilations <= 3
    # The images have 2 x 3 or 3 x 2 windows, and sizes up to 64 x 64, 64 x 128 or 128 x 64.
    assert some._classes.compilations <= 4


def test_images_of_one_geometry_share_batches(monkeypatch):
    some = Segmenter(*network(), WHOLE, NAMES, batch_size=4)
    batches = []
    run = some.run_padded
    monkeypatch.setattr(
        some, "run_padded", lambda pixels: batches.append(len(pixels)) or run(pixels)
    )
    some([picture(40, 60)] * 11)
    assert batches == [4, 4, 4]
    # The last three are filled up to four.
    assert (some._program.compilations, some._classes.compilations) == (1, 1)


def test_a_bounded_number_of_programs_is_kept():
    """Of the compiled ones, the latest three; jax.jit keeps all."""
    client = jax.devices()[0].client
    function = BoundedJit(lambda x: (x * 2 + 1).sum(), 3)
    before = len(client.live_executables())
    for count in range(1, 12):
        assert function(np.ones(count, np.float32)) == 3 * count
    assert function.compilations == 11
    assert len(client.live_executables()) - before <= 4
    function(np.ones(11, np.float32))
    assert function.compilations == 11


# --- Errors -------------------------------------------------------------------------------


def test_what_is_no_segmenter(tmp_path):
    classifier = replk_jax.create_model(TINY, num_classes=5)
    variables = random_variables(classifier)
    with pytest.raises(ValueError, match=r"got a RepLKNet\. Classifier runs classifiers"):
        Segmenter(classifier, variables, WHOLE)
    path = tmp_path / "classifier.safetensors"
    save(path, Checkpoint(classifier, variables, replk_jax.Preprocessing(32)))
    with pytest.raises(ValueError, match=rf"{path}: Segmenter takes a segmentation network"):
        Segmenter.from_file(path)
    model, variables = network()
    for number, protocol in enumerate((WHOLE, None)):
        path = tmp_path / f"{number}.safetensors"
        save(path, Checkpoint(model, variables, protocol))
        for cls in (replk_jax.Classifier, replk_jax.FeatureExtractor):
            message = rf"{path}: .*got a SegmentationNetwork. Segmenter runs it.*segment"
            with pytest.raises(ValueError, match=message):
                cls.from_file(path)


def test_arguments_that_make_no_sense():
    model, variables = network()
    with pytest.raises(ValueError, match="takes a SegmentationProtocol; got a Preprocessing"):
        Segmenter(model, variables, replk_jax.Preprocessing(32))
    with pytest.raises(ValueError, match="preprocessing is unknown"):
        Segmenter(model, variables, None)
    with pytest.raises(ValueError, match="images of 3 channels; the preprocessing is for 1"):
        Segmenter(model, variables, SegmentationProtocol(mean=(0.5,), std=(0.5,)))
    with pytest.raises(ValueError, match="5 classes; got 4 names"):
        Segmenter(model, variables, WHOLE, NAMES[:4])
    with pytest.raises(ValueError, match=r"palette of 5 classes is uint8 \(5, 3\); got float64"):
        Segmenter(model, variables, WHOLE, palette=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"palette of 5 classes is .*; got int64 \(1, 3\)"):
        Segmenter(model, variables, WHOLE, palette=[(1, 2, 3)])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Segmenter(model, variables, WHOLE, batch_size=0)
    many = replk_jax.create_segmenter("fcn", TINY, 256, channels=8, auxiliary_channels=None)
    with pytest.raises(ValueError, match="at most 255 classes; the network has 256"):
        Segmenter(many, random_variables(many), WHOLE)
