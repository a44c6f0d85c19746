"""The look through images with objects: every kind of finding, once."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.train import detection_sets
from train.data.checks.detection import examine_objects

SIZES = ((40, 56), (56, 40))


@pytest.fixture
def root(tmp_path):
    """A folder without faults."""
    return detection_sets.write_coco(tmp_path / "set", {"train": 6, "val": 4}, SIZES)


def examine(root, splits=("train", "val"), **fields):
    data = detection_sets.data(root, max_objects=10, reading={"threads": 2, "workers": 0}, **fields)
    return examine_objects(ConfigDict(data), splits)


def change(root, edit, split="train"):
    """Changes the annotations of a split."""
    path = root / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def found(examination):
    return {(f.severity, f.kind, f.split) for f in examination.findings}


def test_nothing_is_found_in_a_good_set(root):
    examination = examine(root)
    assert found(examination) == set()
    statistics = examination.statistics["train"]
    content = json.loads((root / "annotations/instances_train.json").read_text())
    assert statistics["objects"] == len(content["annotations"])
    assert statistics["images_without_objects"] == 1
    areas = np.array([annotation["area"] for annotation in content["annotations"]])
    assert statistics["small"] == (areas < 32**2).sum()
    assert statistics["objects_per_category"]["disc"] == sum(
        annotation["category_id"] == 3 for annotation in content["annotations"]
    )
    assert statistics["images"] == 6
    text = examination.text()
    assert "most in an image" in text
    assert "0 errors, 0 warnings" in text
    json.dumps(examination.json())


BOXES = [
    ("degenerate box", [5, 5, 0, 5]),
    ("degenerate box", [5, 5, 5, -3]),
    ("thin box", [5, 5, 0.5, 5]),
    ("box outside the image", [60, 60, 5, 5]),
    ("box beyond the image", [30, 5, 50, 5]),
]


@pytest.mark.parametrize(("kind", "box"), BOXES)
def test_boxes(root, kind, box):
    def edit(content):
        content["annotations"][0] |= {"bbox": box}

    examination = examine(root, masks=False)
    assert found(examination) == set()
    change(root, edit)
    examination = examine(root, masks=False)
    assert found(examination) == {("warning", kind, "train")}
    (finding,) = examination.findings
    assert "1 object (annotation 5 of " in finding.message
    assert "train/000.png" in finding.message
    assert examination.errors == 0


def test_boxes_on_the_border_are_no_finding(root):
    change(root, lambda c: c["annotations"][0].update(bbox=[0, 0, 56, 40]))
    change(root, lambda c: c["annotations"][1].update(bbox=[-0.5, -0.5, 10, 10]))
    assert found(examine(root, masks=False)) == set()


def test_annotations(root):
    def edit(content):
        first, second, third, fourth, *_ = content["annotations"]
        first["area"] = 0
        second["id"] = first["id"]
        third["category_id"] = 99
        fourth["image_id"] = 12345
        content["annotations"].append("it")

    change(root, edit)
    assert found(examine(root, masks=False)) == {
        ("warning", "no area", "train"),
        ("error", "duplicate annotation id", "train"),
        ("error", "unknown category", "train"),
        ("warning", "annotation of a missing image", "train"),
        ("error", "broken annotation", "train"),
    }


def test_images(root):
    change(root, lambda c: c["images"].append(dict(c["images"][0])))
    change(root, lambda c: c["images"][1].update(height=40, width=56), "val")
    (root / "train/005.png").unlink()
    (root / "train/004.png").write_bytes((root / "train/003.png").read_bytes())
    (root / "val/000.png").write_bytes((root / "train/000.png").read_bytes())
    kinds = found(examine(root, masks=False))
    assert kinds >= {
        ("error", "duplicate image id", "train"),
        ("error", "unreadable image", "train"),
        ("error", "another size than stated", "val"),
        ("error", "another size than stated", "train"),
        ("warning", "duplicate with another annotation", "train"),
        ("error", "in the training split", "val"),
    }


def test_masks(root):
    def edit(content):
        first, second, *_ = content["annotations"]
        first["segmentation"] = {"size": [1, 1], "counts": [1]}
        second["segmentation"] = [[500, 500, 510, 500, 510, 510]]

    change(root, edit)
    examination = examine(root)
    assert found(examination) == {
        ("error", "unusable mask", "train"), ("warning", "empty mask", "train"),
    }  # fmt: skip
    assert any("the mask of object 1" in f.message for f in examination.findings)


def test_categories(root):
    def without_discs(content):
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]

    change(root, without_discs, "val")
    examination = examine(root)
    assert found(examination) == {("warning", "empty categories", "val")}
    assert "their AP is not defined" in examination.findings[0].message
    change(root, without_discs)
    assert found(examine(root)) == {("warning", "empty categories", "train")}
    change(root, lambda c: c["categories"].append({"id": 1, "name": "cube"}), "val")
    assert ("error", "other categories", "val") in found(examine(root))


def test_fractions_and_many_objects(root):
    def fractions(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [0.1, 0.1, 0.9, 0.5]

    change(root, fractions, "val")
    change(
        root,
        lambda c: c["annotations"].extend(
            {**c["annotations"][0], "id": 1000 + i} for i in range(30)
        ),
    )
    examination = examine(root, masks=False)
    assert ("error", "boxes in fractions", "val") in found(examination)
    assert ("warning", "many objects", "train") in found(examination)
    (many,) = (f for f in examination.findings if f.kind == "many objects")
    assert "set --config.data.max_objects=31" in many.message


def test_splits_that_cannot_be_opened_and_crowds(root):
    change(root, lambda c: c["annotations"][0].update(iscrowd=1, bbox=[0, 0, 40, 40]))
    examination = examine(root, ("train", "test"))
    assert found(examination) == {("error", "cannot be opened", "test")}
    assert examination.statistics["train"]["crowds"] == 1
    change(root, lambda c: c.update(images=[], annotations=[]))
    assert found(examine(root, ("train",))) == {("error", "no images", "train")}
