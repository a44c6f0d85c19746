"""COCO's result format."""

import json

import numpy as np
import pytest

from replk_jax.vision import label_sets
from replk_jax.vision.coco_results import category_ids, coco_result
from replk_jax.vision.run_lengths import compressed_run_lengths
from tests import reference_data

library = pytest.importorskip("faster_coco_eval.core.mask", reason="needs the extra train")


def masks():
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 9), (9, 1), (13, 7), (80, 61), (300, 200)]:
        yield np.zeros((height, width), bool)
        yield np.ones((height, width), bool)
        yield rng.random((height, width)) < 0.5
        yield rng.random((height, width)) < 0.01  # long runs
        block = np.zeros((height, width), bool)
        block[height // 3 :, width // 4 : width // 2 + 1] = True
        yield block


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_run_lengths(mask):
    """Those of the library that reads them."""
    theirs = library.encode(np.asfortranarray(mask, np.uint8))["counts"]
    theirs = theirs.decode() if isinstance(theirs, bytes) else theirs
    assert compressed_run_lengths(mask) == {"size": list(mask.shape), "counts": theirs}


def test_result():
    mask = np.ones((4, 5), bool)
    result = coco_result(7, 3, np.array([1, 2, 4.5, 6], np.float32), np.float32(0.5), mask)
    assert json.loads(json.dumps(result)) == {
        "image_id": 7,
        "category_id": 3,
        "bbox": [1.0, 2.0, 3.5, 4.0],
        "score": 0.5,
        "segmentation": compressed_run_lengths(mask),
    }
    assert "segmentation" not in coco_result(7, 3, np.zeros(4), 0.5, None)


def test_ids_of_other_classes():
    assert category_ids(["a", "b", "c"]) == (1, 2, 3)


@reference_data.required
def test_ids_of_coco():
    path = reference_data.ROOT / "downstream/datasets/coco_80.json"
    wanted = [row["category_id"] for row in json.loads(path.read_text())["classes"]]
    assert list(category_ids(label_sets.find("coco").class_names)) == wanted
