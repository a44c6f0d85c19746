"""The digits scattered on photographs."""

import difflib
import hashlib
import importlib.resources
import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from train.data import scattered_digits
from train.data.photographs import PHOTOGRAPHS
from train.data.scattered_digits import (
    BACKGROUNDS,
    CLASS_NAMES,
    COUNTS,
    DIGIT_NAMES,
    DIGITS,
    LEAST_VISIBLE,
    SIZES,
    make_glyph,
    make_scene,
)
from train.data.sources import open_source, prepare
from train.errors import RunError

# SHA-256 of segmentation, instances and, where the photograph is no JPEG, the image.
CHECKSUMS = {
    ("train", 0): "d31df6de4ab6b371",
    ("train", 1499): "38af562c6be75c68",
    ("test", 0): "094bd0229aabb122",
    ("test", 10): "c7b132432dacd4c1",
}


@pytest.fixture(scope="module")
def scenes():
    """A tenth of each split."""
    return {
        split: [make_scene(split, number) for number in range(count // 10)]
        for split, count in COUNTS.items()
    }


def each(scenes):
    return itertools.chain.from_iterable(scenes.values())


@pytest.mark.parametrize(("split", "number"), CHECKSUMS)
def test_the_set_does_not_change(split, number):
    scene = make_scene(split, number)
    digest = hashlib.sha256(scene.segmentation.tobytes() + scene.instances.tobytes())
    if PHOTOGRAPHS[scene.background][-1].endswith(".png"):
        digest.update(scene.image.tobytes())
    assert digest.hexdigest()[:16] == CHECKSUMS[split, number]


def test_sizes_and_types(scenes):
    for found in scenes.values():
        for number, scene in enumerate(found):
            size = SIZES[number % 3]
            assert scene.image.shape == (*size, 3)
            assert scene.segmentation.shape == scene.instances.shape == size
            assert {x.dtype for x in scene[:3]} == {np.dtype(np.uint8)}


def test_masks_are_those_of_the_digits_in_drawing_order(scenes):
    for scene in each(scenes):
        segmentation, instances = np.zeros((2, *scene.segmentation.shape), np.uint8)
        for number, (glyph, top, left) in enumerate(scene.digits, 1):
            rows, columns = np.nonzero(glyph.mask)
            assert CLASS_NAMES[glyph.label + 1] == DIGIT_NAMES[glyph.label]
            segmentation[rows + top, columns + left] = glyph.label + 1
            instances[rows + top, columns + left] = number
        np.testing.assert_array_equal(scene.segmentation, segmentation)
        np.testing.assert_array_equal(scene.instances, instances)


def test_masks_fit_the_pixels(scenes):
    """A digit has one colour within its edges, and its mask has all pixels of that colour.

    Looked at are the digits that no later one touches.
    """
    looked_at = 0
    for scene in each(scenes):
        for number, placed in enumerate(scene.digits, 1):
            window = placed.window
            if any(_touch(placed, later) for later in scene.digits[number:]):
                continue
            pixels = scene.image[window]
            inside = pixels[placed.glyph.edge == 1]
            if len(inside):
                assert (inside == inside[0]).all()
                mask = scene.instances[window] == number
                np.testing.assert_array_equal(mask, placed.glyph.mask)
                assert mask[placed.glyph.edge >= 0.5].all()
                assert not mask[placed.glyph.edge < 0.5].any()
                looked_at += 1
    assert looked_at > 100


def _touch(first, second):
    a, b = first.window, second.window
    return all(x.start < y.stop and y.start < x.stop for x, y in zip(a, b, strict=True))


def test_glyphs_are_the_digits_of_scikit_learn():
    """Reduced to cells again, the ink correlates with the original digit."""
    cells, labels = load_digits(return_X_y=True)
    correlations = []
    for position in range(0, 1797, 13):
        glyph = make_glyph(position, height=64, aspect=1)
        assert glyph.label == labels[position]
        original = cells[position].reshape(8, 8)
        rows, columns = (np.flatnonzero((original > 8).any(axis=axis)) for axis in (1, 0))
        part = original[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        reduced = Image.fromarray(glyph.ink[1:-1, 1:-1]).resize(part.T.shape, Image.Resampling.BOX)
        correlations.append(np.corrcoef(np.asarray(reduced).ravel(), part.ravel())[0, 1])
    # With mirrored originals, 0.25 on average. Digits of one or two columns have little contrast.
    assert np.mean(correlations) > 0.9
    assert np.min(correlations) > 0.6


@pytest.mark.parametrize("position", [0, 1, 900])
def test_a_glyph_has_a_margin_of_one_pixel(position):
    glyph = make_glyph(position, 30, 0.9)
    for axis in (0, 1):
        inked = np.flatnonzero(glyph.mask.any(axis=axis))
        assert (inked[0], inked[-1]) == (1, glyph.mask.shape[1 - axis] - 2)
    np.testing.assert_array_equal(glyph.mask, glyph.edge >= 0.5)


def test_the_largest_glyphs_fit_into_the_smallest_image():
    largest = np.max([make_glyph(i, 72, 1.1).mask.shape for i in range(1797)], axis=0)
    assert (largest <= np.min(SIZES, axis=0)).all()


def test_every_digit_is_visible(scenes):
    for scene in each(scenes):
        for number, placed in enumerate(scene.digits, 1):
            visible = np.count_nonzero(scene.instances == number)
            assert visible >= LEAST_VISIBLE * np.count_nonzero(placed.glyph.mask)


def test_some_digits_are_covered_in_part(scenes):
    covered = [
        np.count_nonzero(scene.instances == number) < np.count_nonzero(placed.glyph.mask)
        for scene in each(scenes)
        for number, placed in enumerate(scene.digits, 1)
    ]
    assert 0.25 < np.mean(covered) < 0.75


def test_splits_share_no_digit_and_no_photograph(scenes):
    assert [*DIGITS["train"], *DIGITS["test"]] == list(range(len(load_digits().target)))
    assert sorted(BACKGROUNDS["train"] + BACKGROUNDS["test"]) == sorted(PHOTOGRAPHS)
    for split, found in scenes.items():
        assert {scene.background for scene in found} == set(BACKGROUNDS[split])
        positions = {x.glyph.position for scene in found for x in scene.digits}
        assert positions <= set(DIGITS[split])


def test_the_splits_are_whole_forms():
    """The labels are those of one text 14 times; a few digits are missing here and there."""
    labels = "".join(map(str, load_digits().target))
    starts = [0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667]
    text = labels[:130]
    assert text.startswith("0123456789" * 3)
    for start, end in itertools.pairwise([*starts, 1797]):
        form = labels[start:end]
        assert difflib.SequenceMatcher(None, form, text, autojunk=False).ratio() > 0.95
        assert form.startswith(("0123456789", "123456789"))
        assert form[-3:] in ("898", "893", "908")
    assert DIGITS["test"].start in starts


def test_classes_are_balanced(scenes):
    """Of 600 digits, each class has 60 on average, with a standard deviation of 7."""
    labels = [x.glyph.label for scene in scenes["train"] for x in scene.digits]
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.4 * counts.mean()
    shares = np.mean([(scene.segmentation == 0).mean() for scene in scenes["train"]])
    assert 0.7 < shares < 0.9


def test_the_set_on_disk(tmp_path, monkeypatch):
    """Here of fewer images. Masks and boxes are the same things in other forms."""
    counts = {"train": 6, "test": 3}
    for split, count in counts.items():
        monkeypatch.setitem(COUNTS, split, count)
    prepare({"name": "scattered_digits", "data_dir": str(tmp_path), "folder": None})
    builder = tfds.builder("scattered_digits", data_dir=tmp_path)
    assert builder.info.features["segmentation"].names == list(CLASS_NAMES)
    assert builder.info.features["objects"]["label"].names == list(DIGIT_NAMES)
    for split, count in counts.items():
        expected = {make_scene(split, i).image.tobytes(): i for i in range(count)}
        examples = list(builder.as_data_source(split))
        numbers = [expected[example["image"].tobytes()] for example in examples]
        assert sorted(numbers) == list(range(count))
        for example, number in zip(examples, numbers, strict=True):
            scene = make_scene(split, number)
            np.testing.assert_array_equal(example["segmentation"][:, :, 0], scene.segmentation)
            np.testing.assert_array_equal(example["instances"][:, :, 0], scene.instances)
            _check_objects(example)


def _check_objects(example):
    objects = example["objects"]
    instances, classes = example["instances"][:, :, 0], example["segmentation"][:, :, 0]
    height, width = instances.shape
    assert len(objects["label"]) == instances.max()
    for number, (box, label, area) in enumerate(
        zip(objects["bbox"], objects["label"], objects["area"], strict=True), 1
    ):
        visible = instances == number
        assert area == np.count_nonzero(visible)
        assert set(classes[visible]) == {label + 1}
        edges = box * np.array([height, width, height, width])
        top, left, bottom, right = np.rint(edges).astype(int)
        np.testing.assert_allclose(edges, [top, left, bottom, right], atol=1e-4)  # of float32
        window = visible[top:bottom, left:right]
        assert np.count_nonzero(window) == area
        for side in (window[0], window[-1], window[:, 0], window[:, -1]):
            assert side.any()


def test_masks_are_stored_as_grey_png(tmp_path, monkeypatch):
    for split in COUNTS:
        monkeypatch.setitem(COUNTS, split, 1)
    prepare({"name": "scattered_digits", "data_dir": str(tmp_path), "folder": None})
    builder = tfds.builder("scattered_digits", data_dir=tmp_path)
    undecoded = dict.fromkeys(("image", "segmentation", "instances"), tfds.decode.SkipDecoding())
    (example,) = builder.as_data_source("test", decoders=undecoded)
    modes = {name: Image.open(io.BytesIO(example[name])).mode for name in undecoded}
    assert modes == {"image": "RGB", "segmentation": "L", "instances": "L"}


def test_it_is_no_classification_set(tmp_path, monkeypatch):
    for split in COUNTS:
        monkeypatch.setitem(COUNTS, split, 1)
    data = {"name": "scattered_digits", "data_dir": str(tmp_path), "folder": None}
    prepare(data)
    with pytest.raises(RunError, match="scattered_digits is not a classification set"):
        open_source(data, "test")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    def files(package):
        raise ModuleNotFoundError(f"No module named {package!r}")

    scattered_digits._photograph.cache_clear()
    monkeypatch.setattr(importlib.resources, "files", files)
    with pytest.raises(RunError, match=r"pip install scikit-image scikit-learn$"):
        make_scene("test", 0)
