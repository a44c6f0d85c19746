"""Instance masks as bitmaps, polygons and run lengths, against pycocotools' results."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference_data
from train.data import coco_masks

SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]


def run_lengths_of(bitmap: np.ndarray) -> list[int]:
    """Uncompressed run lengths, straight from their definition."""
    counts, value, length = [], 0, 0
    for pixel in bitmap.T.ravel():
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return [*counts, length]


@reference_data.required
def test_reference_bitmaps_and_their_run_lengths():
    path = reference_data.ROOT / "downstream/coco_eval/run_lengths.json"
    cases = json.loads(path.read_text())
    assert cases
    for case in cases:
        bitmap = np.array([list(map(int, row)) for row in case["rows"]])
        given = {"size": case["size"], "counts": case["counts"]}
        found = coco_masks.from_bitmap(bitmap)
        assert found == given
        assert coco_masks.area(found) == case["area"]
        np.testing.assert_array_equal(coco_masks.to_bitmap(given, *case["size"]), bitmap)
        if "polygon" in case:
            polygons = [case["polygon"]]
            np.testing.assert_array_equal(coco_masks.to_bitmap(polygons, *case["size"]), bitmap)
            assert coco_masks.to_run_lengths(polygons, *case["size"]) == given


@reference_data.required
def test_reference_polygons():
    folder = "downstream/transforms"
    arrays = reference_data.arrays(f"{folder}/polygons.npz")
    objects = json.loads((reference_data.ROOT / folder / "polygons.json").read_text())["objects"]
    shape = tuple(arrays["shape"])
    bitmaps = np.unpackbits(arrays["bitmaps"])[: np.prod(shape)].reshape(shape)
    for instance, expected in zip(objects, bitmaps, strict=True):
        found = coco_masks.to_bitmap(instance["parts"], *shape[1:])
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8
        assert found.sum() == instance["pixels"]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_any_bitmap_and_back(height, width, seed):
    bitmap = np.random.default_rng(seed).random((height, width)) < 0.5
    compressed = coco_masks.from_bitmap(bitmap)
    uncompressed = {"size": [height, width], "counts": run_lengths_of(bitmap)}
    assert json.loads(json.dumps(compressed)) == compressed
    assert coco_masks.to_run_lengths(uncompressed, height, width) == compressed
    for run_lengths in (compressed, uncompressed):
        np.testing.assert_array_equal(coco_masks.to_bitmap(run_lengths, height, width), bitmap)


def test_the_union_of_several_polygons():
    other = [2.0, 2.0, 5.0, 2.0, 5.0, 5.0, 2.0, 5.0]
    both = coco_masks.to_bitmap([SQUARE, other], 6, 6)
    each = [coco_masks.to_bitmap([part], 6, 6) for part in (SQUARE, other)]
    np.testing.assert_array_equal(both, each[0] | each[1])
    assert each[0].sum() == 4


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\]"),
        ({"counts": [24]}, "size None"),
        ({"size": [4, 6], "counts": [3, 4]}, "7 pixels in all"),
        ({"size": [4, 6], "counts": [3, 400]}, "403 pixels in all"),
        ({"size": [4, 6], "counts": [30, -6]}, "0 or more"),
        ({"size": [4, 6], "counts": [12.0, 12.0]}, "0 or more"),
        ({"size": [4, 6], "counts": "o1"}, "cannot be read"),
        ({"size": [4, 6], "counts": "o"}, "cannot be read"),
        ({"size": [4, 6], "counts": ""}, "cannot be read"),
        ({"size": [4, 6], "counts": "\u00e9"}, "cannot be read"),
        ({"size": [4, 6]}, "not None"),
        (None, "not None"),
        ("polygon", "not 'polygon'"),
        ([], "no polygon"),
        ([[1, 1, 2, 2]], "three points"),
        ([[1, 1, 2, 2, 3, 3, 4]], "three points"),
        ([SQUARE, []], "three points"),
        ([[[1, 1], [2, 2], [3, 3]]], "three points"),
        ([["a"] * 6], "list of numbers"),
        ([[1, 1, 1e9, 2, 3, 3]], "coordinate"),
        ([[1, 1, float("nan"), 2, 3, 3]], "coordinate"),
    ],
)
def test_broken_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        coco_masks.to_run_lengths(segmentation, 4, 6)
