"""Data sets prepared without TensorFlow: complete, as TensorFlow Datasets would have it, or not
there."""

import fcntl
import functools
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from train.data import ilsvrc, records
from train.data.items import Item, image_example
from train.data.sources import open_source
from train.errors import RunError
from train.prepare import main, prepare_folder, prepare_imagenet
from train.tasks import classification

REPOSITORY = Path(__file__).resolve().parents[2]
SYNSETS = ilsvrc.Contents().synsets[:3]
PER_CLASS = 4
SMALL_SHARD = 2000  # bytes
# The first labels of the real validation set are of other classes.
MOCK = ilsvrc.Contents(
    SYNSETS, train=3 * PER_CLASS, validation=5, validation_synsets=(*SYNSETS, *SYNSETS)
)


def photo(seed, mode="RGB", size=(40, 30)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, 4, len(mode)), np.uint8)
    image = Image.fromarray(small.squeeze(), mode).resize(size, Image.Resampling.BICUBIC)
    return image


def encoded(image, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tar_of(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def train_files():
    """The training images by name: one of them CMYK, one PNG, one grey."""
    files = {
        f"{synset}_{10 * i}.JPEG": encoded(photo(100 * label + i))
        for label, synset in enumerate(SYNSETS)
        for i in range(PER_CLASS)
    }
    files[f"{SYNSETS[0]}_10.JPEG"] = encoded(photo(1, "CMYK"))
    files[f"{SYNSETS[1]}_20.JPEG"] = encoded(photo(2), "PNG")
    files[f"{SYNSETS[2]}_30.JPEG"] = encoded(photo(3, "L"))
    return files


def validation_files():
    return {f"ILSVRC2012_val_{i:08}.JPEG": encoded(photo(1000 + i)) for i in range(1, 6)}


def write_tars(folder, train=None, validation=None):
    train = train or train_files()
    classes = {
        f"{synset}.tar": tar_of({k: v for k, v in train.items() if k.startswith(synset)})
        for synset in SYNSETS
    }
    (folder / ilsvrc.TRAIN_TAR).write_bytes(tar_of(classes))
    (folder / ilsvrc.VALIDATION_TAR).write_bytes(tar_of(validation or validation_files()))


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tars(folder)
    return folder


def source_of(data_dir, split, name="imagenet2012"):
    return open_source({"name": name, "data_dir": str(data_dir), "folder": None}, split)


def stored(source):
    """Images and labels by file name."""
    examples = [source[i] for i in range(len(source))]
    names = [re.search(r"\((.*)\)", example["origin"])[1] for example in examples]
    assert len(set(names)) == len(names)
    return {
        name: (example["image"], example["label"])
        for name, example in zip(names, examples, strict=True)
    }


def test_imagenet_is_stored_whole(tars, tmp_path):
    place = prepare_imagenet(tars, tmp_path / "data", MOCK)
    assert place == tmp_path / "data/imagenet2012/5.1.0"
    train = source_of(tmp_path / "data", "train")
    assert len(train.class_names) == 1000
    images, files = stored(train), train_files()
    assert images.keys() == files.keys()
    mended = {f"{SYNSETS[0]}_10.JPEG", f"{SYNSETS[1]}_20.JPEG"}
    for name, (image, label) in images.items():
        assert train.class_names[label] == name.split("_")[0]
        assert (image == files[name]) == (name not in mended)
    for name in mended:
        with Image.open(io.BytesIO(images[name][0])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            original = Image.open(io.BytesIO(files[name])).convert("RGB")
            # Colours are stored at half the resolution.
            difference = np.asarray(image, float) - np.asarray(original, float)
        assert np.abs(difference).mean() < 2
    validation = stored(source_of(tmp_path / "data", "validation"))
    assert {name: image for name, (image, _) in validation.items()} == validation_files()
    labels = [validation[name][1] for name in sorted(validation)]
    assert labels == [0, 1, 2, 0, 1]


def test_labels_of_imagenet():
    """Those that everybody knows: the first validation images and the sizes of the real set."""
    contents = ilsvrc.Contents()
    assert len(contents.synsets) == len(set(contents.synsets)) == 1000
    assert (contents.train, contents.validation) == (1_281_167, 50_000)
    assert len(contents.validation_synsets) == 50_000
    assert list(contents.synsets) == sorted(contents.synsets)
    assert {contents.validation_synsets.count(synset) for synset in contents.synsets[:20]} == {50}
    # Of the devkit: 00000001 is a sea snake, 00000002 an alp, 00000003 a Shetland sheepdog.
    assert contents.validation_synsets[:3] == ("n01751748", "n09193705", "n02105855")
    assert [contents.synsets.index(s) for s in contents.validation_synsets[:3]] == [65, 970, 230]


def test_order_and_shards_are_those_of_tensorflow_datasets(tmp_path, monkeypatch):
    """Its own writer is given the same images; both cut shards at 60 kB here."""
    files = {f"a_{i}.JPEG": os.urandom(6000) for i in range(50)}

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(num_classes=1000),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for name, image in files.items():
                yield name, {"image": io.BytesIO(image), "label": 7, "file_name": name}

    config = tfds.core.utils.shard_utils.ShardConfig
    monkeypatch.setattr(config, "min_shard_size", 60_000)
    Imagenet2012(
        data_dir=str(tmp_path / "theirs"), file_format="array_record"
    ).download_and_prepare()

    images = tmp_path / "images"
    images.mkdir()
    for name, image in files.items():
        (images / name).write_bytes(image)
    items = [Item(name, 7, f"{images}/{name}") for name in files]
    builder = tfds.builder("imagenet2012", data_dir=tmp_path / "ours")
    records.write_dataset(
        builder.info, {"train": items}, functools.partial(image_example, lambda data, name: data)
    )

    places = [tmp_path / owner / "imagenet2012/5.1.0" for owner in ("theirs", "ours")]
    theirs, ours = (sorted(path.name for path in place.glob("*array_record*")) for place in places)
    assert ours == theirs
    assert len(ours) == 4
    theirs, ours = (source_of(tmp_path / owner, "train") for owner in ("theirs", "ours"))
    assert len(ours) == len(theirs) == 50
    assert all(ours[i] == theirs[i] for i in range(50))
    theirs, ours = (source_of(tmp_path / owner, "train[10%:30%]") for owner in ("theirs", "ours"))
    assert [ours[i]["image"] for i in range(10)] == [theirs[i]["image"] for i in range(10)]


def files_in(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    """Sets of a few small images have more shards than one."""
    config = tfds.core.utils.shard_utils.ShardConfig
    monkeypatch.setattr(config, "min_shard_size", SMALL_SHARD)


def test_killed_preparations_go_on(tars, tmp_path, small_shards):
    """What is whole stays, what is not is never taken for it, and the end is the same."""
    prepare_imagenet(tars, tmp_path / "at_once", MOCK)
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_preparation", tars, tmp_path / "killed"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    *killed, last = json.loads(run.stdout)
    assert len(killed) >= 5
    shards = set()
    for state in killed:
        assert not any(path.startswith("imagenet2012/5.1.0/") for path in state)
        now = {
            (Path(path).name, time)
            for path, time in state.items()
            if "array_record" in path and not path.endswith(".partial")
        }
        assert now >= shards
        assert len(now) > len(shards) or state is killed[0]
        shards = now
    assert shards <= {(Path(path).name, time) for path, time in last.items()}
    assert all(path.startswith("imagenet2012/5.1.0/") for path in last)
    for split in ("train", "validation"):
        expected, actual = (source_of(tmp_path / way, split) for way in ("at_once", "killed"))
        assert len(actual) == len(expected)
        assert all(actual[i] == expected[i] for i in range(len(expected)))


def test_a_preparation_of_other_images_begins_anew(tars, tmp_path, small_shards):
    """Shards of what the folder held before must not get among the others."""
    train = train_files()
    broken = f"{SYNSETS[1]}_0.JPEG"
    write_tars(tars, train | {broken: train[broken][:200]})
    with pytest.raises(RunError, match="1 images cannot be read"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)
    data = tmp_path / "data/imagenet2012/5.1.0.incomplete/data"
    written = {path.name: path.stat().st_mtime_ns for path in data.iterdir()}
    assert len(written) >= 4
    assert not list(data.glob("*.partial"))

    renamed = {name.replace("_0.", "_7."): image for name, image in train.items()}
    write_tars(tars, renamed)
    place = prepare_imagenet(tars, tmp_path / "data", MOCK)
    assert stored(source_of(tmp_path / "data", "train")).keys() == renamed.keys()
    times = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert not written.items() & times.items()


def test_only_one_at_a_time(tars, tmp_path):
    work = tmp_path / "data/imagenet2012/5.1.0.incomplete"
    work.mkdir(parents=True)
    with open(work / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another program"):
            prepare_imagenet(tars, tmp_path / "data", MOCK)
    prepare_imagenet(tars, tmp_path / "data", MOCK)


def test_a_full_disk(tars, tmp_path):
    """Here: files may not become as long as a shard is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot be written: .*File too large.*Free some space"):
            prepare_imagenet(tars, tmp_path / "data", MOCK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    prepare_imagenet(tars, tmp_path / "data", MOCK)
    assert len(source_of(tmp_path / "data", "train")) == MOCK.train


def test_a_place_that_is_taken(tars, tmp_path):
    place = tmp_path / "data/imagenet2012/5.1.0"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"5\.1\.0 has files, but no data set"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)
    (place / "notes.txt").unlink()
    before = files_in(prepare_imagenet(tars, tmp_path / "data", MOCK))
    write_tars(tars, validation={"ILSVRC2012_val_00000001.JPEG": b""})
    assert files_in(prepare_imagenet(tars, tmp_path / "data", MOCK)) == before
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(RunError, match=r"has another format: remove it"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)


def config_for(**data) -> ConfigDict:
    config = common.get_config()
    common.without_augmentation(config)
    config.data.image_size = 16
    config.data.reading = {"threads": 2, "workers": 0}
    config.data.update(data)
    config.batch_size = config.eval_batch_size = 4
    return config


def test_imagenet_makes_batches(tars, tmp_path):
    prepare_imagenet(tars, tmp_path / "data", MOCK)
    task = classification.make_task(config_for(data_dir=str(tmp_path / "data")))
    assert task.training.steps_per_epoch == 3
    labels = [batch["label"] for batch in islice(task.training.batches(0), 3)]
    assert sorted(np.concatenate(labels)) == sorted([0, 1, 2] * PER_CLASS)
    masks = [batch["mask"].sum() for batch in task.evaluations["eval"].examples.batches()]
    assert masks == [4, 1]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (f"{SYNSETS[1]}_", rf"contains 8 images, not 12\. There are no images of {SYNSETS[1]}\."),
        (f"{SYNSETS[2]}_0.", rf"contains 11 images, not 12\..*classes are {SYNSETS[2]} with 3, "),
        ("ILSVRC2012_val_00000003", r"4 images, not 5\. Missing: ILSVRC2012_val_00000003\.JPEG"),
    ],
)
def test_images_that_are_not_in_the_tars(tars, tmp_path, remove, message):
    train, validation = (
        {name: image for name, image in files.items() if not name.startswith(remove)}
        for files in (train_files(), validation_files())
    )
    write_tars(tars, train, validation)
    with pytest.raises(RunError, match=message):
        prepare_imagenet(tars, tmp_path / "data", MOCK)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", [ilsvrc.TRAIN_TAR, ilsvrc.VALIDATION_TAR])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_tars_that_end_early(tars, tmp_path, name, share):
    whole = (tars / name).read_bytes()
    (tars / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError, match=rf"{name} (is damaged or incomplete|contains)"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)


def test_tars_that_are_not_there_or_hold_something_else(tars, tmp_path):
    (tars / ilsvrc.VALIDATION_TAR).write_bytes(tar_of({"cat.JPEG": b"cat"}))
    with pytest.raises(RunError, match=r"contains cat\.JPEG, which is no image of ILSVRC2012"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)
    (tars / ilsvrc.VALIDATION_TAR).unlink()
    with pytest.raises(RunError, match=r"There is no .*img_val\.tar.*image-net\.org.*--tars DIR"):
        prepare_imagenet(tars, tmp_path / "data", MOCK)


def test_a_damaged_image_in_a_tar(tars, tmp_path):
    train = train_files()
    name = f"{SYNSETS[1]}_0.JPEG"
    train[name] = train[name][:200]
    write_tars(tars, train)
    with pytest.raises(RunError, match=rf"Cannot read the image {name} in .*img_train\.tar: "):
        prepare_imagenet(tars, tmp_path / "data", MOCK)


@pytest.fixture
def folder(tmp_path):
    """Six images to train on and two to evaluate on, of two classes."""
    root = tmp_path / "images"
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                photo(10 * label + i).save(root / split / name / f"{split}{i}.png")
    (root / "train/cat/._train0.png").write_bytes(b"of a Mac")
    (root / ".cache").mkdir()
    return root


def test_a_folder_is_read_as_it_is(folder, tmp_path):
    """In another order, with the same bytes and labels; and as the configuration names it."""
    place = prepare_folder(folder, "pets", tmp_path / "data")
    assert place == tmp_path / "data/pets/1.0.0"
    for split in ("train", "validation"):
        prepared = source_of(tmp_path / "data", split, "pets")
        direct = open_source({"folder": str(folder)}, split)
        assert prepared.class_names == direct.class_names == ["cat", "dog"]
        examples = [direct[i] for i in range(len(direct))]
        assert stored(prepared) == {
            "/".join(Path(example["origin"]).parts[-2:]): (example["image"], example["label"])
            for example in examples
        }
    config = config_for(data_dir=str(tmp_path / "data"), name="pets")
    batch = next(classification.make_task(config).training.batches(0))
    assert batch["image"].shape == (4, 16, 16, 3)
    assert "tensorflow" not in sys.modules


def test_an_unreadable_image_of_a_folder(folder, tmp_path, small_shards, capsys):
    """Ends the preparation; or is stored as it is, and replaced in training."""
    broken = folder / "train/dog/train1.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:100])
    with pytest.raises(RunError, match=rf"1 images cannot be read(.|\n)*{broken}: "):
        prepare_folder(folder, "pets", tmp_path / "data")
    written = tmp_path / "data/pets/1.0.0.incomplete/data"
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    assert before

    place = prepare_folder(folder, "kept", tmp_path / "data", keep_unreadable=True)
    assert str(broken) in (place / records.UNREADABLE_LIST).read_text()
    config = config_for(data_dir=str(tmp_path / "data"), name="kept", unreadable="replace")
    reports = []
    list(islice(classification.make_task(config).training.batches(0, reports.append), 3))
    assert any("dog/train1.png" in report for report in reports)

    broken.write_bytes(good)
    place = prepare_folder(folder, "pets", tmp_path / "data")
    assert len(source_of(tmp_path / "data", "train", "pets")) == 6
    after = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert before.items() < after.items()


def test_names_that_are_not_utf8(folder, tmp_path, capsys):
    """Of images, whole or damaged, and of classes: stored and reported with escapes."""
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / "c\udce9t\n")
    train = folder / "train/c\udce9t\n"
    (train / "train0.png").rename(train / "\udcff\n0.png")
    (train / "\udcffbad.png").write_bytes(b"no image")
    shown = r"c\udce9t\n/\udcff"
    arguments = [str(folder), "--name=pets", f"--data_dir={tmp_path / 'data'}", "--processes=1"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert f"Cannot read the image {folder}/train/{shown}bad.png: it is no" in str(stopped.value)
    main([*arguments, "--keep_unreadable"])
    place = tmp_path / "data/pets/1.0.0"
    listed = (place / records.UNREADABLE_LIST).read_text("utf-8").splitlines()
    assert len(listed) == 1
    assert f"{shown}bad.png" in listed[0]
    source = source_of(tmp_path / "data", "train", "pets")
    assert source.class_names == [r"c\udce9t\n", "dog"]
    assert stored(source)[rf"{shown}\n0.png"] == ((train / "\udcff\n0.png").read_bytes(), 0)
    assert open_source({"folder": str(folder)}, "train").class_names == source.class_names


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "my split"])
def test_splits_that_cannot_be_named(name, folder, tmp_path):
    (folder / "val").rename(folder / name)
    with pytest.raises(RunError, match=r"is no valid name for a split, which has letters"):
        prepare_folder(folder, "pets", tmp_path / "data")


def test_a_place_whose_path_is_not_utf8(folder, tmp_path):
    with pytest.raises(RunError, match=r"is not UTF-8.*rename the folder, or use another one"):
        prepare_folder(folder, "pets", tmp_path / "data\udce9")


def test_folders_and_names_that_will_not_do(folder, tmp_path):
    def fails(message, place=folder, name="pets"):
        with pytest.raises(RunError, match=message):
            prepare_folder(place, name, tmp_path / "data")

    fails("There is no folder", place=tmp_path / "none")
    fails("has no splits", place=folder / "train/cat")
    fails("no images in", place=folder / "train")
    fails("small letters", name="My Pets")
    fails("set of TensorFlow Datasets", name="cifar10")
    (folder / "val/cat").rename(folder / "val/cow")
    fails("do not have the same classes: cat")


def test_the_program_with_several_processes(folder, tmp_path, small_shards):
    """As one process does it, and said in words."""
    prepare_folder(folder, "pets", tmp_path / "one")
    command = [sys.executable, "-m", "train.prepare", folder, "--name=pets", "--processes=2"]
    run = subprocess.run(
        [*command, f"--data_dir={tmp_path / 'two'}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"--config.data.name=pets --config.data.data_dir={tmp_path / 'two'}" in run.stdout
    for split in ("train", "validation"):
        one, two = (
            stored(source_of(tmp_path / number, split, "pets")) for number in ("one", "two")
        )
        assert one == two


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_stopped_leaves_nothing_behind(number, folder, tmp_path):
    """Neither processes nor semaphores; stopped while the first shards are written."""
    large = folder / "train/cat/large.png"
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(pixels).save(large)
    for i in range(1000):
        os.link(large, folder / f"train/cat/{i}.png")
    place = tmp_path / "data/pets/1.0.0.incomplete/data"
    with subprocess.Popen(
        [sys.executable, "-m", "train.prepare", folder, "--name=pets", "--processes=2",
         f"--data_dir={tmp_path / 'data'}"],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not list(place.glob("*.partial")):
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors == "The same command resumes the preparation.\nInterrupted.\n"


def test_what_the_program_says(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^error: There is no .*img_val\.tar"):
        main(["imagenet2012", f"--tars={tmp_path}", f"--data_dir={tmp_path}"])
    for arguments in (["imagenet2012"], [str(tmp_path), f"--tars={tmp_path}"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "--tars belongs to imagenet2012" in capsys.readouterr().err
