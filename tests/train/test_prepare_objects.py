"""`python -m train.prepare` for images with annotated objects."""

import dataclasses
import json

import numpy as np
import pytest

from tests.train import detection_sets
from train import prepare
from train.data.detection_sources import open_detection_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepare") / "set"
    return detection_sets.write_coco(root, {"train": 4, "val": 3}, ((40, 56),))


def prepared(data_dir, split):
    data = detection_sets.data(None, name="shapes", data_dir=str(data_dir)) | {"folder": None}
    return open_detection_source(data, split)


def run(folder, data_dir, *options):
    arguments = ["--name", "shapes", "--data_dir", str(data_dir), "--processes", "1", *options]
    prepare.main([str(folder), *arguments])


def test_a_folder(folder, tmp_path, capsys):
    run(folder, tmp_path, "--format", "coco")
    assert "Train with --config.data.name=shapes" in capsys.readouterr().out
    assert len(prepared(tmp_path, "train")) == 4
    for split in ("validation", "val"):
        assert len(prepared(tmp_path, split)) == 3
    # The same command again finds that it is done.
    run(folder, tmp_path, "--format", "coco")


def test_other_places_and_some_of_the_splits(folder, tmp_path):
    other = tmp_path / "other/valid"
    other.mkdir(parents=True)
    content = (folder / "annotations/instances_val.json").read_text()
    (other / "_annotations.coco.json").write_text(content)
    for image in json.loads(content)["images"]:
        (other / image["file_name"]).write_bytes((folder / "val" / image["file_name"]).read_bytes())
    run(
        tmp_path / "other", tmp_path, "--format", "coco", "--splits", "valid",
        "--annotations", "{split}/_annotations.coco.json", "--images", "{split}",
    )  # fmt: skip
    source = prepared(tmp_path, "valid")
    assert len(source) == 3
    assert source.has_masks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--annotations", "a.json"), "--annotations is for COCO's JSON files: add --format coco"),
        (("--format", "voc_xml", "--images", "x"), "--images is for COCO's JSON files"),
        (("--format", "coco", "--mask_suffix", ".png"), "--mask_suffix is for images and masks"),
        (("--reduce_zero_label",), "--reduce_zero_label is for images and masks"),
        (("--splits", "train"), "--splits is for a folder with a --format: add it"),
    ],
)
def test_options_that_do_not_belong_together(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *options)
    assert message in capsys.readouterr().err


def test_splits_with_other_categories(folder, tmp_path):
    place = tmp_path / "set"
    detection_sets.write_coco(place, {"train": 2, "val": 2}, ((40, 56),))
    path = place / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": content["categories"][::-1]}))
    with pytest.raises(SystemExit, match=r"do not have the same categories in the same order"):
        run(place, tmp_path, "--format", "coco")
    with pytest.raises(SystemExit, match=r"no file .*instances_test\.json"):
        run(place, tmp_path, "--format", "coco", "--splits", "test")


@pytest.mark.exhaustive
def test_several_processes_store_the_same(folder, tmp_path):
    arguments = [str(folder), "--name", "shapes", "--format", "coco", "--processes"]
    for count in ("1", "2"):
        prepare.main([*arguments, count, "--data_dir", str(tmp_path / count)])
    one, two = (prepared(tmp_path / count, "train") for count in ("1", "2"))
    for field in dataclasses.fields(one.table):
        np.testing.assert_array_equal(*(getattr(s.table, field.name) for s in (one, two)))
    for image in range(4):
        assert one.reader.read(image) == two.reader.read(image)
