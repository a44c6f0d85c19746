"""Images and masks prepared without TensorFlow."""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils

from replk_jax.vision import label_sets
from replk_jax.vision.images import ImageError
from tests.train.data.test_segmentation_sources import (
    classes,
    config,
    write,
    write_ade20k,
    write_cityscapes,
    write_classes,
    write_pairs,
)
from train import prepare
from train.data import records, segmentation_records
from train.data.masks import decode_pair
from train.data.segmentation_records import prepare_pairs
from train.data.segmentation_sources import open_segmentation_source
from train.errors import RunError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scenes"
    for split in ("train", "val"):
        write_pairs(root, "abcde", f"images/{split}/{{}}.png", f"masks/{split}/{{}}.png")
    write_classes(root)
    return root


def decoded(source):
    """(image, mask) of all examples by file name."""
    examples = [source[i] for i in range(len(source))]
    return {Path(e["origin"].rstrip(")")).stem: decode_pair(e, source.label_set) for e in examples}


def prepared(data_dir, split, name="scenes"):
    return open_segmentation_source(config(name=name, data_dir=str(data_dir)), split)


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        for array, other in zip(arrays, found[name], strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_folder(folder, tmp_path):
    place = prepare_pairs(config(folder), "scenes", tmp_path / "data")
    assert place == tmp_path / "data/scenes/1.0.0"
    for split in ("train", "validation"):
        source = prepared(tmp_path / "data", split)
        direct = open_segmentation_source(config(folder), split)
        check_equal(decoded(source), decoded(direct))
        assert source.label_set.class_names == ("sky", "road", "tree")
        image = (folder / f"images/{'val' if split == 'validation' else split}/a.png").read_bytes()
        assert image in {source[i]["image"] for i in range(len(source))}
    # With the names that the splits have in folders, as in the configurations.
    validation = decoded(prepared(tmp_path / "data", "validation"))
    check_equal(decoded(prepared(tmp_path / "data", "val")), validation)
    first = prepared(tmp_path / "data", "training[:20%]")
    assert len(first) == 1
    assert first[0]["image"] == prepared(tmp_path / "data", "train")[0]["image"]
    with pytest.raises(RunError, match="no split 'test'; it has train, validation"):
        prepared(tmp_path / "data", "test")
    # TensorFlow Datasets itself decodes the masks as they were.
    reader = tfds.builder("scenes", data_dir=tmp_path / "data").as_data_source("train")
    masks = {example["file_name"].decode(): example["mask"] for example in reader}
    np.testing.assert_array_equal(masks["images/train/c.png"][:, :, 0], classes(2))
    assert "tensorflow" not in sys.modules


def test_values_become_classes_and_colours_stay(tmp_path):
    write_ade20k(tmp_path / "ade")
    data = config(tmp_path / "ade", format="ade20k")
    place = prepare_pairs(data, "my_ade", tmp_path / "data")
    info = json.loads((place / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "validation"]
    source = prepared(tmp_path / "data", "train", "my_ade")
    check_equal(decoded(source), decoded(open_segmentation_source(data, "train")))
    ade20k = label_sets.find("ade20k")
    assert source.label_set.class_names == ade20k.class_names
    np.testing.assert_array_equal(source.label_set.palette, ade20k.palette)
    values = np.asarray(Image.open(io.BytesIO(source[0]["mask"])))
    assert set(np.unique(values)) <= {0, 1, 255}


def test_cityscapes(tmp_path):
    write_cityscapes(tmp_path / "raw")
    data = config(tmp_path / "raw", format="cityscapes")
    with pytest.raises(RunError, match=r"no .*leftImg8bit/val"):
        prepare_pairs(data, "my_cityscapes", tmp_path / "data")
    prepare_pairs(data, "my_cityscapes", tmp_path / "data", ["train"])
    source = prepared(tmp_path / "data", "train", "my_cityscapes")
    check_equal(decoded(source), decoded(open_segmentation_source(data, "train")))


def test_voc_with_the_extra_set(tmp_path):
    root = tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in {"train": "a", "val": "b", "aug": "c"}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    write_pairs(root, "abc", "JPEGImages/{}.jpg", "SegmentationClassAug/{}.png")
    write_pairs(root, "ab", "JPEGImages/{}.jpg", "SegmentationClass/{}.png")
    prepare_pairs(config(root, format="voc"), "my_voc", tmp_path / "data")
    lengths = {
        split: len(prepared(tmp_path / "data", split, "my_voc"))
        for split in ("train", "validation", "trainaug")
    }
    assert lengths == {"train": 1, "validation": 1, "trainaug": 2}


def test_splits_by_lists(tmp_path):
    """classes.txt and other texts beside the lists are no splits."""
    root = tmp_path / "scenes"
    write_pairs(root, "abc", "images/{}.png", "masks/{}.png")
    write_classes(root)
    (root / "README.txt").write_text("hello")
    (root / "{old}").mkdir()
    (root / "train.txt").write_text("a\nb")
    (root / "splits").mkdir()
    (root / "splits/fold1.txt").write_text("c")
    place = prepare_pairs(config(root), "scenes", tmp_path / "data")
    info = json.loads((place / "dataset_info.json").read_text())
    assert {s["name"]: s["shardLengths"] for s in info["splits"]} == {
        "train": ["2"],
        "fold1": ["1"],
    }


def test_what_does_not_fit_is_reported(folder, tmp_path, capsys):
    """All of it at once; or it is stored, and an error for whoever reads it."""
    write(folder / "masks/train/b.png", classes(1, size=(6, 7)))
    write(folder / "masks/val/c.png", classes(1) + 7)
    (folder / "images/train/d.png").write_bytes(b"nothing")
    with pytest.raises(RunError) as caught:
        prepare_pairs(config(folder), "scenes", tmp_path / "data")
    message = str(caught.value)
    assert "3 images cannot be read with their masks:" in message
    assert f"masks/train/b.png has 7 x 6 pixels, and its image {folder}/images/train/b" in message
    assert "masks/val/c.png has values that are no class: 7 (" in message
    assert "images/train/d.png: " in message

    place = prepare_pairs(config(folder), "kept", tmp_path / "data", keep_unreadable=True)
    listed = (place / records.UNREADABLE_LIST).read_text()
    assert len(listed.splitlines()) == 3
    source = prepared(tmp_path / "data", "train", "kept")
    assert len(source) == 5
    bad = 0
    for index in range(5):
        try:
            decode_pair(source[index], source.label_set)
        except ImageError:
            bad += 1
    assert bad == 2


def test_an_interrupted_preparation_resumes(folder, tmp_path, monkeypatch):
    """Complete shards stay; those of other classes do not."""
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 300)
    whole, count = segmentation_records.make_example, 0

    def stops(item):
        nonlocal count
        count += 1
        if count > 6:
            raise KeyboardInterrupt
        return whole(item)

    monkeypatch.setattr(segmentation_records, "make_example", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_pairs(config(folder), "scenes", tmp_path / "data")
    data = tmp_path / "data/scenes/1.0.0.incomplete/data"
    written = {path.name: path.stat().st_mtime_ns for path in data.glob("*array_record*")}
    assert len(written) >= 2
    monkeypatch.setattr(segmentation_records, "make_example", whole)
    place = prepare_pairs(config(folder), "scenes", tmp_path / "data")
    after = {path.name: path.stat().st_mtime_ns for path in place.glob("*array_record*")}
    complete = {name for name in written if not name.endswith(".partial")}
    assert {name: after[name] for name in complete} == {name: written[name] for name in complete}
    direct = open_segmentation_source(config(folder), "train")
    check_equal(decoded(prepared(tmp_path / "data", "train")), decoded(direct))


def test_other_classes_begin_anew(folder, tmp_path, monkeypatch):
    write(folder / "masks/val/c.png", classes(1) + 7)
    with pytest.raises(RunError, match="cannot be read"):
        prepare_pairs(config(folder), "scenes", tmp_path / "data")
    write(folder / "masks/val/c.png", classes(1))
    write_classes(folder, "abcd")
    (folder / "masks").rename(folder / "annotations")
    data = {**config(folder), "reduce_zero_label": True}
    prepare_pairs(data, "scenes", tmp_path / "data")
    source = prepared(tmp_path / "data", "train")
    assert source.label_set.class_names == tuple("abcd")
    masks = [mask for _, mask in decoded(source).values()]
    assert set(np.unique(masks)) == {0, 1, 255}


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("Scenes", (), "use small letters"),
        ("cityscapes", (), "is a data set of TensorFlow Datasets"),
        ("scenes", ("test",), "has no split test"),
        ("scenes", ("val", "validation"), "are the same one"),
        ("scenes", ("train[:5%]",), "no valid name for a split"),
    ],
)
def test_what_cannot_be_prepared(folder, tmp_path, name, splits, message):
    with pytest.raises(RunError, match=message):
        prepare_pairs(config(folder), name, tmp_path / "data", splits)
    assert not (tmp_path / "data").exists()


def test_folders_without_splits(tmp_path):
    with pytest.raises(RunError, match="has no split train"):
        prepare_pairs(config(tmp_path), "scenes", tmp_path / "data")
    with pytest.raises(RunError, match=r"no folder .*gone"):
        prepare_pairs(config(tmp_path / "gone"), "scenes", tmp_path / "data")


@pytest.mark.parametrize("layout", ["{kind}/train/a.png", "train/{kind}/a.png", "{kind}/a.png"])
def test_the_format_is_forgotten(tmp_path, layout):
    """The folders are no classes."""
    write_pairs(tmp_path, "a", layout.format(kind="images"), layout.format(kind="annotations"))
    with pytest.raises(RunError, match=r"has images and masks, .*: add --format folder"):
        prepare.prepare_folder(tmp_path, "scenes", tmp_path / "data")


def test_the_program(folder, tmp_path, capsys):
    (folder / "classes.txt").unlink()
    (tmp_path / "own.txt").write_text("x\ny\nz\n")
    arguments = [
        str(folder), "--name", "scenes", "--format", "folder", "--splits", "val", "--classes",
        str(tmp_path / "own.txt"), "--reduce_zero_label", "--processes", "1", "--data_dir",
        str(tmp_path / "data"),
    ]  # fmt: skip
    prepare.main(arguments)
    assert "Train with --config.data.name=scenes" in capsys.readouterr().out
    source = prepared(tmp_path / "data", "validation")
    assert source.label_set.class_names == ("x", "y", "z")
    masks = [mask for _, mask in decoded(source).values()]
    assert set(np.unique(masks)) == {0, 1, 255}
    with pytest.raises(SystemExit):
        prepare.main([str(folder), "--name", "scenes", "--classes", "own.txt"])
    assert "--classes is for a folder with a --format: add it" in capsys.readouterr().err


def test_worker_processes_can_have_the_items(folder):
    """As classification has them, which tests the processes themselves."""
    pairs = segmentation_records.Pairs(config(folder), "train")
    copy, make_example = pickle.loads(pickle.dumps((pairs, segmentation_records.make_example)))
    assert [copy[i].fingerprint for i in range(5)] == [pairs[i].fingerprint for i in range(5)]
    assert make_example(copy[0]) == segmentation_records.make_example(pairs[0])
