"""Bilinear resizing in OpenCV's fixed point: every byte."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replk_jax.vision.opencv_bilinear import resize_bilinear
from tests import reference_data

TRANSFORMS = "downstream/transforms"


@reference_data.required
def test_the_reference_cases_are_equal():
    arrays = reference_data.arrays(f"{TRANSFORMS}/resize.npz")
    cases = json.loads((reference_data.ROOT / TRANSFORMS / "resize.json").read_text())["cases"]
    assert len(cases) == 21
    for case in cases:
        key = f"{case['source']}/{case['index']}"
        result = resize_bilinear(arrays[case["source"]], tuple(case["size"]))
        np.testing.assert_array_equal(result, arrays[f"bilinear_uint8/{key}"], key)


@given(st.tuples(*[st.integers(1, 90)] * 4), st.integers(0, 1000), st.sampled_from([None, 1, 3, 4]))
def test_any_size_equals_opencv(sides, seed, channels):
    cv2 = pytest.importorskip("cv2")
    height, width, new_height, new_width = sides
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    result = resize_bilinear(image, (new_height, new_width))
    np.testing.assert_array_equal(result, expected.reshape(result.shape))


@pytest.mark.parametrize("size", [(512, 1024), (1024, 2048), (1280, 2560)])
def test_large_images_in_several_parts(size):
    """Those of Cityscapes to a half, to themselves and enlarged; in much less than a second."""
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)
    start = time.process_time()
    result = resize_bilinear(image, size)
    assert time.process_time() - start < 1  # 0.1 s on a quiet machine
    np.testing.assert_array_equal(result, cv2.resize(image, size[::-1]))


def test_the_image_stays_as_it_is():
    image = np.full((4, 6, 3), 7, np.uint8)
    result = resize_bilinear(image, (4, 6))
    result[:] = 0
    assert (image == 7).all()


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (np.zeros((4, 4), np.float32), (2, 2), "float32"),
        (np.zeros((4,), np.uint8), (2, 2), r"\(4,\)"),
        (np.zeros((0, 4), np.uint8), (2, 2), r"\(0, 4\)"),
        (np.zeros((4, 4), np.uint8), (0, 2), "at least 1"),
    ],
)
def test_bad_input(image, size, message):
    with pytest.raises(ValueError, match=message):
        resize_bilinear(image, size)
