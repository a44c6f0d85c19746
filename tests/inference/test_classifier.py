"""Classifier: from images to names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax import Classifier, Preprocessing
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.inference.image_program import prepare_ahead
from replk_jax.vision import imagenet
from replk_jax.vision.images import ImageError
from tests.helpers import ONE_STAGE, random_variables
from tests.vision.test_images import picture

pytestmark = pytest.mark.usefixtures("strict_promotion")

PREPROCESSING = Preprocessing(32, 0.8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
NAMES = tuple(f"name {i}" for i in range(7))

# Merging kernels and batch norms changes logits of about 1 by float32's rounding.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def network(**fields):
    model = replk_jax.create_model(ONE_STAGE, **{"num_classes": 7, **fields})
    return model, random_variables(model)


@pytest.fixture(scope="module")
def classifier():
    return Classifier(*network(), PREPROCESSING, NAMES, batch_size=4)


def expected_logits(images):
    """One image at a time, in the training-time structure."""
    model, variables = network()
    batch = jnp.stack([PREPROCESSING(image) for image in images])
    apply = jax.jit(model.apply)
    return np.concatenate([apply(variables, image[None]) for image in batch])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_logits_are_those_of_the_model_whatever_the_batch(classifier, count):
    images = [picture(40 + 3 * i, 50 - i, seed=i) for i in range(count)]
    logits = classifier.logits(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits(images), **TOLERANCE)


def test_images_of_every_kind(classifier, tmp_path):
    pixels = picture(45, 39)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    kinds = [path, str(path), path.read_bytes(), Image.open(path), pixels, jnp.asarray(pixels)]
    logits = classifier.logits(kinds)
    for row in logits[1:]:
        np.testing.assert_array_equal(row, logits[0])
    for one in (*kinds, pixels[None], [pixels], (pixels,)):
        alone = classifier.logits(one)
        assert alone.shape == (1, 7)
        np.testing.assert_allclose(alone[0], logits[0], **TOLERANCE)
    batch = np.stack([pixels, pixels[:, ::-1]])
    np.testing.assert_allclose(classifier.logits(batch), expected_logits(batch), **TOLERANCE)


def test_predictions(classifier):
    images = [picture(40, 40, seed=seed) for seed in range(5)]
    logits = np.float64(classifier.logits(images))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(images), softmax, rtol=1e-5)
    for top_k, shown in ((5, 5), (1, 1), (100, 7)):
        for row, predictions in zip(softmax, classifier(images, top_k=top_k), strict=True):
            best = np.argsort(-row)[:shown]
            assert [p.index for p in predictions] == list(best)
            assert [p.name for p in predictions] == [NAMES[i] for i in best]
            np.testing.assert_allclose([p.score for p in predictions], row[best], rtol=1e-5)
            assert type(predictions[0].index) is int
            assert type(predictions[0].score) is float


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_predict_nothing(value, classifier, monkeypatch):
    logits = np.float32([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, value, 0, 0, 0], [9, 1, 2, 3, 4, 5, 6]])
    with pytest.raises(ValueError, match=r"1 of 3 images are not finite \(index 1\)"):
        classifier.best(logits)
    best = classifier.best(logits[[0, 2]], top_k=1)
    assert [predictions[0].index for predictions in best] == [6, 0]
    monkeypatch.setattr(classifier, "run", lambda pixels: logits)
    images = [picture()] * 3
    np.testing.assert_array_equal(classifier.logits(images), logits)
    for predict in (classifier, classifier.probabilities):
        with pytest.raises(ValueError, match="not finite"):
            predict(images)


def test_no_images(classifier):
    assert classifier([]) == []
    assert classifier.logits([]).shape == (0, 7)


def test_few_shapes_are_compiled(monkeypatch):
    """Batches of at most 4, filled up to 1, 2 or 4."""
    shapes = []
    classifier = Classifier(*network(), PREPROCESSING, NAMES, batch_size=4)
    program = classifier._program

    def spy(variables, pixels):
        shapes.append(len(pixels))
        return program(variables, pixels)

    monkeypatch.setattr(classifier, "_program", spy)
    for count, batches in ((1, [1]), (2, [2]), (3, [4]), (5, [4, 1]), (11, [4, 4, 4])):
        shapes.clear()
        assert len(classifier.logits([picture()] * count)) == count
        assert shapes == batches
    assert program.compilations == 3
    with pytest.raises(ValueError, match="at most 4 images; got 5"):
        classifier.run(np.zeros((5, 32, 32, 3), np.uint8))


def test_a_merged_network_is_taken_as_it_is(classifier):
    model, variables = network()
    merged = Classifier(
        model.clone(deploy=True), jax.jit(replk_jax.reparameterize)(variables), PREPROCESSING
    )
    images = [picture(40, 40, seed=seed) for seed in range(3)]
    np.testing.assert_allclose(merged.logits(images), classifier.logits(images), **TOLERANCE)
    assert [p.name for p in merged(images[0])[0]] == [
        str(p.index) for p in classifier(images[0])[0]
    ]


def test_the_program_is_re_parameterized(classifier):
    leaves = jax.tree_util.tree_leaves_with_path(classifier._variables)
    names = {jax.tree_util.keystr(path) for path, _ in leaves}
    assert not any("batch_stats" in name or "bn" in name for name in names)


def test_a_thousand_classes_are_those_of_imagenet():
    classifier = Classifier(*network(num_classes=1000), PREPROCESSING)
    assert classifier.class_names == imagenet.class_names()


def test_grey_images():
    grey = Preprocessing(16, None, mean=(0.5,), std=(0.5,))
    model = replk_jax.create_model(ONE_STAGE, in_channels=1, num_classes=3)
    classifier = Classifier(model, random_variables(model), grey)
    logits = classifier.logits([picture(20, 20), picture(20, 20, channels=None)])
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"num_classes": None}, (PREPROCESSING,), "no classifier"),
        ({"out_indices": (0,)}, (PREPROCESSING,), "no classifier"),
        ({}, (None,), "The preprocessing is unknown"),
        (
            {},
            (Preprocessing(32, mean=(0.5,), std=(0.5,)),),
            "3 channels; the preprocessing",
        ),
        ({}, (PREPROCESSING, ("a", "b")), "7 classes; got 2 names"),
    ],
)
def test_what_does_not_fit(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(*network(**fields), *arguments)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Classifier(*network(), PREPROCESSING, batch_size=0)


def test_an_image_that_cannot_be_read(classifier, tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        classifier([picture(), tmp_path / "nowhere.png"])


def test_from_file(classifier, tmp_path):
    path = tmp_path / "network.safetensors"
    save(path, Checkpoint(*network(), PREPROCESSING, NAMES))
    loaded = Classifier.from_file(path, batch_size=4)
    images = [picture(40, 40, seed=seed) for seed in range(3)]
    np.testing.assert_array_equal(loaded.logits(images), classifier.logits(images))
    assert loaded.class_names == NAMES
    other = Classifier.from_file(
        path, preprocessing=Preprocessing(16), class_names=[str(i) for i in range(7)]
    )
    assert other.preprocessing.image_size == 16
    assert other.class_names[3] == "3"
    with pytest.raises(ValueError, match=r"network\.safetensors: .*got 0 names"):
        Classifier.from_file(path, class_names=[])
    with pytest.raises(ValueError, match=r"network\.safetensors: .*got 1 names"):
        Classifier.from_file(path, class_names=["a"])


def test_preparing_ahead():
    """In order, the last list shorter, and an error where its item would be."""
    assert list(prepare_ahead(lambda x: x * x, range(7), 3)) == [[0, 1, 4], [9, 16, 25], [36]]
    assert list(prepare_ahead(str, [], 3)) == []
    halves = prepare_ahead(lambda x: 4 // x, [4, 2, 1, 0], 2)
    assert next(halves) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        next(halves)
