"""The label sets of the known data sets, and those of a user's classes."""

import json
import pickle

import numpy as np
import pytest

from replk_jax.vision import label_sets
from replk_jax.vision.label_sets import IGNORED, NO_CLASS, LabelSet, default_palette, palette_of
from tests import reference_data


def facts(name):
    return json.loads((reference_data.ROOT / "downstream/datasets" / name).read_text())


def values_of(label_set):
    """The values of the classes in order."""
    return [
        int(np.flatnonzero(label_set.class_of_value == k).item()) for k in range(len(label_set))
    ]


@pytest.mark.parametrize(
    ("name", "classes", "ignored"),
    [
        ("ade20k", 150, {0, 255}),
        ("cityscapes", 19, {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255}),
        ("voc2012", 21, {255}),
        ("coco", 80, {255}),
    ],
)
def test_known_sets(name, classes, ignored):
    label_set = label_sets.find(name)
    assert name in label_sets.names()
    assert label_set.name == name
    assert len(label_set) == len(set(label_set.class_names)) == classes
    assert all(each and each == each.strip() for each in label_set.class_names)
    assert label_set.palette.shape == (classes, 3)
    assert (label_set.palette.dtype, label_set.class_of_value.dtype) == (np.uint8, np.int16)
    assert set(np.flatnonzero(label_set.class_of_value == IGNORED)) == ignored
    others = np.delete(label_set.class_of_value, [*values_of(label_set), *ignored])
    assert (others == NO_CLASS).all()


@reference_data.required
def test_they_are_those_of_the_sources():
    classes = facts("ade20k_150.json")["classes"]
    ade20k = label_sets.find("ade20k")
    assert list(ade20k.class_names) == [row["name"] for row in classes]
    assert ade20k.palette.tolist() == [row["rgb"] for row in classes]
    assert values_of(ade20k) == [row["png_value"] for row in classes]

    labels = facts("cityscapes_19.json")
    cityscapes = label_sets.find("cityscapes")
    train_ids = labels["train_id_of_id"]
    assert cityscapes.class_of_value[: len(train_ids)].tolist() == train_ids
    by_id = {row["id"]: row for row in labels["labels"]}
    rows = [by_id[value] for value in labels["id_of_train_id"]]
    assert list(cityscapes.class_names) == [row["name"] for row in rows]
    assert cityscapes.palette.tolist() == [row["rgb"] for row in rows]

    for name, file in (("voc2012", "voc2012_21.json"), ("coco", "coco_80.json")):
        classes, label_set = facts(file)["classes"], label_sets.find(name)
        assert list(label_set.class_names) == [row["name"] for row in classes]
        assert label_set.palette.tolist() == [row["rgb"] for row in classes]
        assert values_of(label_set) == list(range(len(classes)))


def test_the_default_palette_is_that_of_voc():
    np.testing.assert_array_equal(default_palette(21), label_sets.find("voc2012").palette)
    colours = default_palette(256)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in colours.tolist()}) == 256


def test_colours_by_the_names_of_the_classes():
    cityscapes = label_sets.find("cityscapes")
    np.testing.assert_array_equal(palette_of(cityscapes.class_names), cityscapes.palette)
    np.testing.assert_array_equal(palette_of(["road", "sky"]), default_palette(2))


def test_classes_of_a_user():
    label_set = LabelSet.of(["road", "sky"])
    assert label_set.class_of_value[[0, 1, 2, 254, 255]].tolist() == [0, 1, -1, -1, 255]
    np.testing.assert_array_equal(label_set.palette, default_palette(2))
    reduced = LabelSet.of(["road", "sky"], [[1, 2, 3], [4, 5, 6]], reduce_zero_label=True)
    assert reduced.class_of_value[[0, 1, 2, 3, 255]].tolist() == [255, 0, 1, -1, 255]
    assert reduced.palette.tolist() == [[1, 2, 3], [4, 5, 6]]
    ade20k = label_sets.find("ade20k")
    again = LabelSet.of(ade20k.class_names, reduce_zero_label=True)
    np.testing.assert_array_equal(again.class_of_value, ade20k.class_of_value)
    np.testing.assert_array_equal(again.palette, ade20k.palette)


def test_the_largest_sets():
    names = [str(i) for i in range(256)]
    assert LabelSet.of(names[:255]).class_of_value.tolist() == list(range(256))
    reduced = LabelSet.of(names[:254], reduce_zero_label=True)
    assert reduced.class_of_value.tolist() == [255, *range(254), 255]
    with pytest.raises(ValueError, match=r"1 to 255 classes.*got 256"):
        LabelSet.of(names)
    with pytest.raises(ValueError, match=r"1 to 254 classes.*got 255"):
        LabelSet.of(names[:255], reduce_zero_label=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "1 to 255 classes.*got 0"),
        ((["a", "b", "a"],), "two are 'a'"),
        ((["a", "b"], [[0, 0, 0]]), r"shape \(2, 3\); got the shape \(1, 3\)"),
        ((["a"], [[0, 0, 300]]), r"whole numbers from 0 to 255.*\[\[0, 0, 300\]\]"),
        ((["a"], [[0, 0, 0.5]]), "whole numbers from 0 to 255"),
    ],
)
def test_sets_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelSet.of(*arguments)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="ade20k, cityscapes, voc2012, coco; got 'ade'"):
        label_sets.find("ade")


def test_known_sets_cannot_be_changed():
    palette = np.zeros((1, 3), np.uint8)
    for label_set in (label_sets.find("coco"), LabelSet.of(["a"], palette)):
        with pytest.raises(ValueError, match="read-only"):
            label_set.palette[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            label_set.class_of_value[0] = 1
    palette[:] = 1  # the caller's own array stays writable
    copy = pickle.loads(pickle.dumps(label_sets.find("coco")))
    assert copy.class_names == label_sets.find("coco").class_names
