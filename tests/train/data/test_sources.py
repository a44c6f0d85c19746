"""Where images come from."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from replk_jax.vision.images import ImageError, find_images
from train.data.names import Names
from train.data.sources import open_source, prepare
from train.errors import RunError
from train.prepare import prepare_folder


def data(data_dir=None, name="digits", folder=None):
    return {"name": name, "data_dir": str(data_dir) if data_dir else None, "folder": folder}


def test_digits_are_all_there_once(data_dir):
    """Both splits together are scikit-learn's images, pixel for pixel, and labels."""
    digits = load_digits()
    found = []
    sizes = []
    for split in ("train", "test"):
        source = open_source(data(data_dir), split)
        sizes.append(len(source))
        assert source.class_names == [str(digit) for digit in range(10)]
        for i in range(len(source)):
            example = source[i]
            pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
            assert pixels.shape == (8, 8)
            found.append((np.round(pixels * (16 / 255)).astype(int).tobytes(), example["label"]))
    assert sizes == [1498, 299]
    expected = [
        (image.astype(int).tobytes(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_tensorflow_is_not_imported(data_dir):
    program = (
        "import sys; from train.data.sources import open_source; "
        f"source = open_source({data(data_dir)!r}, 'train'); source[0]; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_set_whose_builder_needs_tensorflow(tmp_path):
    with pytest.raises(RunError, match="builder of coco cannot be imported"):
        open_source(data(tmp_path, "coco"), "train")


@pytest.mark.parametrize("name", ["imagenet2012", "mnist"])
def test_a_set_that_is_not_prepared(tmp_path, name):
    with pytest.raises(RunError) as caught:
        open_source(data(tmp_path, name), "train")
    message = str(caught.value)
    assert f"{name} is not prepared in {tmp_path}" in message
    assert "--config.data.folder=DIR" in message
    assert f"train.prepare DIR --name NAME --data_dir {tmp_path}" in message
    ours = f"python -m train.prepare imagenet2012 --tars DIR --data_dir {tmp_path}"
    assert (ours in message) == (name == "imagenet2012")
    assert ("download_and_prepare" in message) == (name != "imagenet2012")


def test_digits_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"could not be prepared in .*--config\.data\.data_dir"):
        prepare(data(tmp_path / "file"))


def test_a_place_that_is_not_utf8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(RunError, match="is not UTF-8"):
        prepare(data(folder))
    with pytest.raises(RunError, match="is not UTF-8"):
        open_source(data(folder, "imagenet2012"), "train")


def test_an_unknown_set(tmp_path):
    with pytest.raises(
        RunError, match=r"no 'digitz', and none is prepared in .*Did you mean digits"
    ):
        open_source(data(tmp_path, "digitz"), "train")


def test_an_unknown_split(data_dir):
    with pytest.raises(RunError, match="no split 'validation'; it has test, train"):
        open_source(data(data_dir), "validation")


def photo(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def write_imagenet(data_dir, file_format="array_record"):
    """Prepares a set that lies on disk as TFDS lays imagenet2012, with eight photos."""

    # The library has one of this name.
    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": photo(i), "label": 100 + i, "file_name": f"{i}.JPEG"}

    Imagenet2012(data_dir=str(data_dir), file_format=file_format).download_and_prepare()


def test_imagenet_as_tfds_prepares_it(tmp_path):
    """The library's own builder reads what lies on disk, by name, without TensorFlow."""
    write_imagenet(tmp_path)
    program = (
        "from train.data.sources import open_source; "
        f"d = {data(tmp_path, 'imagenet2012')!r}; "
        "train, val = open_source(d, 'train'), open_source(d, 'validation'); "
        "part = open_source(d, 'train[:50%]'); "
        "print(len(train), len(val), len(part), len(train.class_names), "
        "sorted(int(train[i]['label']) for i in range(6)), train[0]['image'][:2].hex(), "
        "train[3]['origin'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == (
        "6 2 3 1000 [100, 101, 102, 103, 104, 105] ffd8 "
        "imagenet2012, split train, example 3 (3.JPEG)"
    )


def test_a_format_without_random_access(tmp_path):
    """As TFDS writes by default; its records cannot be read by position."""
    write_imagenet(tmp_path)
    info = tmp_path / "imagenet2012" / "5.1.0" / "dataset_info.json"
    text = info.read_text()
    assert '"array_record"' in text
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(RunError, match=r"without random access\. Remove it(.|\n)*train\.prepare"):
        open_source(data(tmp_path, "imagenet2012"), "train")


def test_a_set_that_is_no_classification_set(tmp_path):
    class Pairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"number": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"number": 1}

    Pairs(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(RunError, match="pairs is not a classification set"):
        open_source(data(tmp_path, "pairs"), "train")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "eel")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                photo(10 * label + i).save(place / f"{i}.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders(folder):
    train = open_source(data(folder=str(folder)), "train")
    assert train.class_names == ["cat", "dog", "eel"]
    assert [train[i]["label"] for i in range(len(train))] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert train[4]["origin"] == str(folder / "train/dog/1.png")
    assert train[4]["image"] == (folder / "train/dog/1.png").read_bytes()
    # ImageNet's folder is called val where TFDS says validation.
    assert len(open_source(data(folder=str(folder)), "validation")) == 6


def test_folders_that_are_not_there_or_empty(folder):
    with pytest.raises(RunError, match=r"no folder .*test.*test/<class>/<image>"):
        open_source(data(folder=str(folder)), "test")
    (folder / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(RunError, match=r"no images in .*empty/cat: expected"):
        open_source(data(folder=str(folder)), "empty")
    (folder / "bare").mkdir()
    with pytest.raises(RunError, match=r"no images in .*bare: expected"):
        open_source(data(folder=str(folder)), "bare")


def test_hidden_files_are_passed_over(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / "._0.png").write_bytes(b"what a Mac knows of 0.png")
    (folder / "train" / "cat" / ".thumbnails").mkdir()
    photo(0).save(folder / "train" / "cat" / ".thumbnails" / "0.png")
    source = open_source(data(folder=str(folder)), "train")
    assert source.class_names == ["cat", "dog", "eel"]
    assert len(source) == 9


def test_a_folder_holds_what_find_images_finds(folder):
    """In folders of folders, by any ending, with links and names of all kinds."""
    cat = folder / "train" / "cat"
    (cat / "a" / "b").mkdir(parents=True)
    for name in ("a/b/1.PNG", "a/2.jpeg", "a-b.png", "\udcff.png", "été 1.webp"):
        photo(1).save(cat / name, "PNG")
    (cat / "link.png").symlink_to(cat / "0.png")
    (folder / "train" / "fox").symlink_to(cat)
    source = open_source(data(folder=str(folder)), "train")
    assert source.class_names == ["cat", "dog", "eel", "fox"]
    found = [source[i] for i in range(len(source))]
    for label, name in enumerate(source.class_names):
        origins = {example["origin"] for example in found if example["label"] == label}
        assert origins == {str(path) for path in find_images(folder / "train" / name)}
    assert len(found) == 9 + 3 + 3 + 9
    assert all(Path(example["origin"]).read_bytes() == example["image"] for example in found)


def test_what_a_folder_leaves_out_is_said_once(folder, capsys):
    """Of all class folders together, and of images outside them; not of hidden and text files."""
    photo(0).save(folder / "train" / "cat" / "a.TIF", "TIFF")
    for name in ("cat/b.heic", "dog/c.HEIC", "eel/d", "stray.jpg", ".hidden.jpg", "notes.txt"):
        (folder / "train" / name).touch()
    assert len(open_source(data(folder=str(folder)), "train")) == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: {folder}/train has files that are not read as images: 2 .heic, "
    )
    assert "1 without an ending" in line
    assert "1 .jpg outside the class folders" in line
    open_source(data(folder=str(folder)), "val")
    assert capsys.readouterr().err == ""


def test_names_of_classes_are_text(folder):
    """That UTF-8 files of one line a name can hold; their files are found by the true names."""
    names = ["cat\udce9", "dog\n", "eel\xa0大"]
    for old, new in zip(("cat", "dog", "eel"), names, strict=True):
        (folder / "train" / old).rename(folder / "train" / new)
    source = open_source(data(folder=str(folder)), "train")
    assert source.class_names == [r"cat\udce9", r"dog\n", "eel\xa0大"]
    assert source[4]["origin"] == f"{folder}/train/dog\n/1.png"
    assert source[4]["label"] == 1
    (folder / "train" / "dog\n" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"/train/dog\\n/1\.png: No such file"):
        source[4]


def test_a_file_that_has_gone(folder):
    source = open_source(data(folder=str(folder)), "train")
    gone = folder / "train/dog/1.png"
    gone.unlink()
    with pytest.raises(ImageError, match=rf"{gone}: No such file"):
        source[4]
    assert source[5]["origin"] == str(folder / "train/dog/2.png")


def test_a_damaged_record(folder, tmp_path):
    """Its neighbours can be read."""
    place = prepare_folder(folder, "animals", tmp_path / "data")
    (file,) = place.glob("*train*")
    source = open_source(data(tmp_path / "data", "animals"), "train")
    records = bytearray(file.read_bytes())
    start = records.index(source[2]["image"])
    records[start : start + 10] = bytes(10)
    file.write_bytes(records)
    source = open_source(data(tmp_path / "data", "animals"), "train")
    with pytest.raises(ImageError, match=r"image animals, split train, example 2: .*mismatch"):
        source[2]
    assert len({source[i]["image"] for i in range(9) if i != 2}) == 8


def test_names_in_little_memory():
    """Of a million, as long as those of ImageNet: their bytes and 8 more each, also pickled."""
    names = Names(f"n{i // 1000:08}_{i}.JPEG" for i in range(1_000_000))
    assert len(names) == 1_000_000
    assert [names[i] for i in (0, 7, 999_999)] == [
        "n00000000_0.JPEG", "n00000000_7.JPEG", "n00000999_999999.JPEG",
    ]  # fmt: skip
    pickled = pickle.dumps(names)
    assert len(pickled) < 1_000_000 * (len("n00000999_999999.JPEG") + 8) + 1000
    assert pickle.loads(pickled)[999_999] == names[999_999]
