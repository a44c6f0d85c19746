"""Average precision of boxes and masks, against pycocotools' numbers."""

import copy
import importlib.util
import json
from typing import Any

import pytest

from tests import reference_data
from train.data import coco_masks
from train.errors import RunError
from train.tasks import coco_evaluation
from train.tasks.coco_evaluation import evaluate

LIBRARIES = [
    pytest.param(
        library,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
        ),
    )
    for library in coco_evaluation.LIBRARIES
]
REFERENCE_CASES: dict[str, dict[str, Any]] = {
    "bbox": {"kind": "bbox"},
    "segm": {"kind": "segm"},
    "segm_area_from_box": {"kind": "segm", "areas_of_boxes": True},
    "bbox_class_agnostic": {"kind": "bbox", "class_agnostic": True},
}
SQUARE = {"bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
TRUTH = {
    "images": [{"id": 7, "height": 40, "width": 60}, {"id": 3, "height": 40, "width": 60}],
    "categories": [{"id": 9, "name": "cell"}, {"id": 2, "name": "dog"}],
    # The ids are missing or equal, as in files that were put together by hand.
    "annotations": [
        {"image_id": 7, "category_id": 9, "id": 0, **SQUARE},
        {"image_id": 3, "category_id": 9, "id": 0, **SQUARE},
    ],
}


def load(name: str) -> Any:
    return json.loads((reference_data.ROOT / "downstream/coco_eval" / name).read_text())


def detection(**fields: Any) -> dict[str, Any]:
    return {
        "image_id": 7,
        "category_id": 9,
        "score": 0.5,
        "bbox": [0.0, 0.0, 10.0, 10.0],
        **fields,
    }


def approximately(numbers: dict[str, float | None]) -> dict[str, Any]:
    return {
        name: number if number is None else pytest.approx(number, rel=0, abs=1e-9)
        for name, number in numbers.items()
    }


@reference_data.required
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_reference_numbers(case, library, capfd):
    """1e-9: both are in double precision, and only sums may differ in their order."""
    truth, detections = load("truth.json"), load("detections.json")
    given = copy.deepcopy((truth, detections))
    found = evaluate(truth, detections, library=library, **REFERENCE_CASES[case])
    expected = load("expected.json")[case]
    by_category = expected.pop("AP_per_category")
    assert found.summary == approximately(expected)
    found_by_category = {name: of["AP"] for name, of in found.by_category.items()}
    assert found_by_category == approximately(by_category)
    assert capfd.readouterr() == ("", "")
    assert (truth, detections) == given


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_of_two_is_found(library):
    """AP is the share of the 101 recalls that are reached; the category without truth is left out.

    The object of the other image is not found, so recalls up to 0.5 are reached.
    """
    found = evaluate(TRUTH, [detection()], library=library)
    assert found.summary["AP"] == found.summary["AP50"] == pytest.approx(51 / 101)
    assert found.summary["AP_small"] == found.summary["AP"]
    assert found.summary["AP_large"] is None
    assert found.summary["AR_1"] == 0.5
    assert list(found.by_category) == ["cell", "dog"]
    assert found.by_category["cell"]["AP75"] == pytest.approx(51 / 101)
    assert found.by_category["dog"] == {"AP": None, "AP50": None, "AP75": None}


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_found(library):
    assert evaluate(TRUTH, [], library=library).summary["AP"] == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_there_is_nothing_to_be_found(library):
    truth = {**TRUTH, "annotations": []}
    found = evaluate(truth, [detection()], library=library)
    assert set(found.summary.values()) == {None}


def test_masks_of_one_box_differ():
    polygon = [[0, 0, 10, 0, 10, 10, 0, 10]]
    smaller = [[0, 0, 9, 0, 9, 8, 0, 8]]
    truth = copy.deepcopy(TRUTH)
    truth["annotations"] = [{**truth["annotations"][0], "segmentation": polygon}]
    whole, part = (coco_masks.to_run_lengths(shape, 40, 60) for shape in (polygon, smaller))
    assert evaluate(truth, [detection(segmentation=whole)], "segm").summary["AP"] == 1
    found = evaluate(truth, [detection(segmentation=part)], "segm").summary
    assert found["AP"] == pytest.approx(0.5)  # 72 % overlap: right up to 0.7, wrong from 0.75 on
    assert evaluate(truth, [detection(segmentation=part)], "bbox").summary["AP"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_id": 8}, "unknown image 8"),
        ({"category_id": 1}, "unknown category 1"),
        ({"score": float("nan")}, "image 7 has the score nan"),
    ],
)
def test_detections_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        evaluate(TRUTH, [detection(**fields)])


def test_annotations_without_masks_or_names_twice():
    with pytest.raises(ValueError, match="image 7 has no segmentation"):
        evaluate(TRUTH, [], "segm")
    twice = {**TRUTH, "categories": [{"id": 1, "name": "cell"}, {"id": 9, "name": "cell"}]}
    with pytest.raises(ValueError, match="called 'cell'"):
        evaluate(twice, [])


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(coco_evaluation._MODULES, "pycocotools", ("not_there", "not_there"))
    with pytest.raises(RunError, match="pip install pycocotools"):
        evaluate(TRUTH, [], library="pycocotools")
