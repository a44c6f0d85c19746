"""Resizing that keeps the aspect ratio."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.images import ImageError
from replk_jax.vision.keep_ratio import KeepRatio, ratio_limits, size_within
from replk_jax.vision.opencv_bilinear import resize_bilinear
from tests import reference_data

TRANSFORMS = "downstream/transforms"


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@reference_data.required
def test_sizes_of_the_reference():
    """In training for seven draws of the ratio, and in the tests at several scales."""
    facts = json.loads((reference_data.ROOT / TRANSFORMS / "sizes.json").read_text())
    rules = {
        "ade20k_512": (2048, 512),
        "unireplknet_640": (2560, 640),
        "cityscapes_769": (2049, 1025),
    }
    assert {case["rule"] for case in facts["seg_random"]} == set(rules)
    for case in facts["seg_random"]:
        base = rules[case["rule"]]
        limits = ratio_limits(base, 0.5 + 1.5 * case["u"])
        assert list(limits) == case["limits"]
        width, height = case["image"]
        assert list(size_within(height, width, limits)[::-1]) == case["size"]
    for case in facts["seg_test_views"]:
        preprocessing = KeepRatio(rules[case["rule"]])
        width, height = case["image"]
        sizes = [
            [list(preprocessing.resized_size(height, width, ratio)[::-1]), flip]
            for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            for flip in (False, True)
        ]
        assert sizes == case["order"]


@reference_data.required
def test_views_of_the_reference():
    """Normalised images of a test with three ratios; float32 of the same formula within 1e-5."""
    arrays = reference_data.arrays(f"{TRANSFORMS}/seg_pipeline.npz")
    image = np.ascontiguousarray(arrays["image_bgr"][:, :, ::-1])
    preprocessing = KeepRatio((80, 40))
    for index, ratio in enumerate((0.5, 1.0, 1.75)):
        pixels = preprocessing.resized_pixels(image, ratio=ratio)
        mean, std = (np.array(values) * 255 for values in (preprocessing.mean, preprocessing.std))
        normalised = ((pixels - mean) / std).transpose(2, 0, 1)
        for flipped in (False, True):
            expected = arrays[f"test/view_{2 * index + flipped}"]
            actual = normalised[:, :, ::-1] if flipped else normalised
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 2048), st.integers(1, 2048))
def test_the_limits_are_kept(height, width, first, second):
    """Both within half a pixel, and one of them reached."""
    limits = max(first, second), min(first, second)
    size = size_within(height, width, limits)
    assert max(size) <= limits[0] + 0.5
    assert min(size) <= max(1, limits[1] + 0.5)
    assert max(size) == limits[0] or min(size) == limits[1]
    assert (size[0] >= size[1]) == (height >= width) or size[0] == size[1]


def test_pixels():
    image = picture(60, 80)
    preprocessing = KeepRatio((100, 40))
    np.testing.assert_array_equal(preprocessing.pixels(image), resize_bilinear(image, (40, 53)))
    np.testing.assert_array_equal(
        preprocessing.resized_pixels(image, ratio=0.5), resize_bilinear(image, (20, 27))
    )
    assert preprocessing(image).dtype == np.float32
    assert preprocessing.size is None


def test_images_are_read_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    file = io.BytesIO()
    Image.fromarray(picture(60, 80)).save(file, "PNG", exif=exif)
    expected = resize_bilinear(np.rot90(picture(60, 80), -1).copy(), (53, 40))
    np.testing.assert_array_equal(KeepRatio((100, 40)).pixels(file.getvalue()), expected)


def test_a_multiple_is_reached_by_a_second_resizing():
    image = picture(60, 80)
    preprocessing = KeepRatio((100, 40), multiple=32)
    assert preprocessing.resized_size(60, 80) == (64, 64)
    twice = resize_bilinear(resize_bilinear(image, (40, 53)), (64, 64))
    np.testing.assert_array_equal(preprocessing.pixels(image), twice)
    assert preprocessing.resized_size(32, 32) == (64, 64)
    assert KeepRatio((64, 64), multiple=32).resized_size(10, 10) == (64, 64)


def test_grey_images():
    preprocessing = KeepRatio((20, 10), mean=(0.5,), std=(0.5,))
    assert preprocessing.pixels(picture(40, 40)).shape == (10, 10, 1)


def test_it_is_stored_and_found_again():
    preprocessing = KeepRatio([2560, 640], multiple=32, mean=[0.5] * 3, std=[0.25] * 3)
    stored = json.loads(json.dumps(preprocessing.as_dict()))
    assert stored["kind"] == "keep_ratio"
    assert BasePreprocessing.from_dict(stored) == preprocessing
    assert preprocessing.limits == (2560, 640)
    with pytest.raises(ValueError, match=r"'keep_ratio' has the fields \['limits'"):
        BasePreprocessing.from_dict({"kind": "keep_ratio", "limits": [2048, 512]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limits": (512, 2048)}, "limits .* longer side first; got"),
        ({"limits": 512}, "limits .* got 512"),
        ({"limits": (1, 2, 3)}, "limits"),
        ({"limits": (0, 0)}, "limits"),
        ({"multiple": 0}, "multiple .* got 0"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0)}, "std"),
        ({"std": (0.5,)}, "for each channel"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        KeepRatio(**fields)


def test_an_image_that_would_come_out_too_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"far\.png, 10 x 10 pixels: it would come to 512 x 512"):
        KeepRatio().pixels(picture(10, 10), "far.png")


def test_an_extreme_aspect_keeps_a_pixel():
    assert KeepRatio((100, 50)).pixels(picture(1, 900)).shape == (1, 100, 3)
