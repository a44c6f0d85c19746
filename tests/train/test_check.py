"""The look through a data set before training: every kind of finding, once."""

import importlib
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import common
from tests.train import tiny
from tests.train.conftest import REPOSITORY
from train import check
from train.data.checks import classification, duplicates
from train.data.sources import FolderSource
from train.engine import config_flags as command_line
from train.engine import json_flag
from train.errors import RunError
from train.reporting.examination import Examination, Finding, Table


def encoded(seed, size=(40, 30), mode="RGB", format="PNG", **options):
    """An image of noise; size is width and height."""
    width, height = size
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, format, **options)
    return file.getvalue()


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def good(split, first_seed):
    """Two images of each of two classes."""
    return {
        f"{split}/{name}/{number}.png": encoded(first_seed + 2 * label + number)
        for label, name in enumerate(("cat", "dog"))
        for number in range(2)
    }


@pytest.fixture
def root(tmp_path):
    """A folder without faults."""
    write(tmp_path, good("train", 0) | good("val", 100))
    return tmp_path


def configuration(root, **fields):
    config = common.get_config()
    config.data.folder = str(root)
    config.data.image_size = 24
    config.update_from_flattened_dict(fields)
    return config


def findings(root, **fields):
    return check.check(configuration(root, **fields)).findings


def only_finding(root, **fields):
    (finding,) = findings(root, **fields)
    return finding


def test_a_good_data_set(root):
    examination = check.check(configuration(root))
    assert examination.findings == []
    assert examination.statistics == {
        split: {
            "images": 4,
            "smallest": "40 x 30",
            "largest": "40 x 30",
            "grey": 0,
            "images_per_class": {"cat": 2, "dog": 2},
        }
        for split in ("train", "validation")
    }
    assert examination.text().endswith("\n0 errors, 0 warnings.")


@pytest.mark.parametrize("reading", [{"threads": 1, "workers": 0}, {"threads": 3, "workers": 0}])
def test_unreadable_images_in_the_order_of_their_paths(root, reading):
    write(root, {f"train/cat/{name}.jpg": b"no image" for name in "abc"})
    found = findings(root, **{"data.reading": reading})
    assert [finding.kind for finding in found] == ["unreadable image"] * 3
    for name, finding in zip("abc", found, strict=True):
        assert finding.severity == "error"
        assert f"cat/{name}.jpg: it is no image" in finding.message
        assert finding.message.endswith("or set config.data.unreadable=replace.")


def test_an_incomplete_image(root):
    write(root, {"val/dog/cut.png": encoded(7)[:-300]})
    finding = only_finding(root)
    assert (finding.severity, finding.split) == ("error", "validation")
    assert "dog/cut.png" in finding.message


def test_unreadable_images_that_training_replaces_are_a_warning(root):
    write(root, {"train/cat/x.jpg": b""})
    finding = only_finding(root, **{"data.unreadable": "replace"})
    assert finding.severity == "warning"
    assert finding.message.endswith("Training replaces it by the next one.")


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("suffix of another format", "x.jpg", encoded(9)),
        ("CMYK", "x.jpg", encoded(9, mode="CMYK", format="JPEG")),
        ("transparency", "x.png", encoded(9, mode="RGBA")),
        ("EXIF orientation", "x.jpg", encoded(9, format="JPEG", exif=exif(6))),
        (
            "several frames",
            "x.tif",
            encoded(9, format="TIFF", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        ),
    ],
)
def test_what_is_unusual_about_an_image(root, kind, name, data):
    write(root, {f"train/cat/{name}": data})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("warning", kind)
    assert finding.message.startswith(f"{kind} in 1 image ({root}/train/cat/{name}): ")


def test_more_than_8_bits(root):
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(
        root / "train/dog/x.png"
    )
    assert only_finding(root).kind == "more than 8 bits"


def test_what_is_usual(root):
    """The orientation 1 is upright, and an MPO is a JPEG with a second picture."""
    write(
        root,
        {
            "train/cat/x.jpg": encoded(9, format="JPEG", exif=exif(1)),
            "train/cat/y.JPEG": encoded(10, mode="L", format="JPEG"),
            "train/cat/z.jpg": encoded(
                11, format="MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))]
            ),
        },
    )
    assert findings(root) == []


def test_many_images_of_a_kind_are_one_finding(root):
    write(root, {f"train/dog/{n}.jpg": encoded(20 + n) for n in range(5)})
    message = only_finding(root).message
    assert "in 5 images (" in message
    assert "and 2 more)" in message


def test_images_of_one_colour(root):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(file, "PNG")
    write(root, {"train/dog/x.png": file.getvalue()})
    assert only_finding(root).kind == "one colour only"


def test_duplicates(root):
    write(root, {f"train/cat/{name}.png": encoded(9) for name in "xyz"})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("warning", "duplicate")
    names = "; ".join(f"{root}/train/cat/{name}.png" for name in "xyz")
    assert finding.message.startswith(f"{names} are the same file")


def test_duplicates_of_two_classes(root):
    write(root, {f"train/{name}/x.png": encoded(9) for name in ("cat", "dog")})
    finding = only_finding(root)
    assert finding.kind == "duplicate with another annotation"
    assert "contradict" in finding.message


def test_an_image_in_both_splits(root):
    """One of five is much; one of two hundred is not."""
    write(root, {f"{split}/cat/x.png": encoded(9) for split in ("train", "val")})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "in the training split")
    assert finding.split == "validation"
    assert f"{root}/val/cat/x.png is {root}/train/cat/x.png of train" in finding.message
    write(root, {f"val/{label}/{n}.png": encoded((label == "cat", n), (24, 24))
                 for label in ("cat", "dog") for n in range(1000, 1100)})  # fmt: skip
    assert only_finding(root).severity == "warning"


def test_imbalance(root):
    write(root, {f"train/dog/{n}.png": encoded(n, (24, 24)) for n in range(200, 219)})
    finding = only_finding(root)
    assert finding.kind == "imbalance"
    assert "the class dog has 21 images, 10 times as many as cat with 2" in finding.message


def test_small_images(root):
    found = findings(root, **{"data.image_size": 32})
    assert [(finding.kind, finding.split) for finding in found] == [
        ("small images", "train"),
        ("small images", "validation"),
    ]
    assert "4 of 4 images are smaller" in found[0].message


def test_classes_of_one_split_only(root):
    write(root, {"train/bird/x.png": encoded(9)})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "different classes")
    assert "the class bird of train is missing in validation" in finding.message


def test_channels(root):
    """All images are coloured, and the network takes grey ones; and the other way round."""
    fields = {"model.in_channels": 1, "data.mean": (0.5,), "data.std": (0.5,)}
    assert {f.kind for f in findings(root, **fields)} == {"coloured"}
    for split in ("train", "val"):
        for path in (root / split).rglob("*.png"):
            Image.open(path).convert("L").save(path)
    assert findings(root, **fields) == []
    assert {f.kind for f in findings(root)} == {"all grey"}


def test_files_that_are_no_images(root, capsys):
    write(root, {"train/cat/x.heic": b"", "train/cat/notes.txt": b""})
    finding = only_finding(root)
    assert finding.kind == "other files"
    assert "1 .heic" in finding.message
    assert "warning" not in capsys.readouterr().err


def test_a_split_that_is_missing(root):
    examination = check.check(configuration(root, **{"data.eval_split": "test"}))
    (finding,) = examination.findings
    assert (finding.severity, finding.kind) == ("error", "cannot be opened")
    assert list(examination.statistics) == ["train"]


def test_a_prepared_set(data_dir):
    """Nothing but the size of the digits, 8 x 8 pixels."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    examination = check.check(config)
    assert {finding.kind for finding in examination.findings} == {"small images"}
    assert examination.statistics["train"]["images"] == 1498


def test_examples_without_labels(root, monkeypatch):
    """As in the test splits of some prepared sets."""

    class Unlabelled(FolderSource):
        def __getitem__(self, index):
            if index == 1:
                raise RunError("x, split train, example 1 has no label; use a labelled split.")
            return super().__getitem__(index)

    monkeypatch.setattr(classification, "open_source", lambda data, split: Unlabelled(root, split))
    found = findings(root)
    assert [(f.severity, f.kind) for f in found] == [("error", "no label")] * 2
    assert found[0].message.endswith("use a labelled split.")


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_by_brute_force(seed):
    """Few digests, some of them in several places."""
    rng = np.random.default_rng(seed)

    def contents(split, count):
        digests = rng.integers(0, 12, count, np.uint64)
        positions = np.sort(rng.permutation(3 * count)[:count])
        return duplicates.Contents(split, digests, positions, lambda i: f"<{i}>", lambda i: 0)

    train, test = contents("train", 10), contents("test", 20)
    groups = {d: train.positions[train.digests == d].tolist() for d in set(train.digests)}
    expected = sorted(group for group in groups.values() if len(group) > 1)
    messages = [finding.message for finding in duplicates.within(train)]
    assert len(messages) == len(expected)
    for message, group in zip(messages, expected, strict=True):
        assert message.startswith("; ".join(f"<{place}>" for place in group[:3]))

    expected = [
        f"<{place}> is <{groups[digest][0]}> of train"
        for place, digest in zip(test.positions, test.digests, strict=True)
        if digest in groups
    ]
    messages = [finding.message for finding in duplicates.between(train, test)]
    assert [message.partition(",")[0] for message in messages] == expected
    nothing = contents("none", 0)
    assert list(duplicates.within(nothing)) == []
    assert list(duplicates.between(nothing, test)) == list(duplicates.between(test, nothing)) == []


def test_an_invalid_configuration(root):
    with pytest.raises(RunError, match="batch_size"):
        check.check(configuration(root, batch_size=0))


def test_text_shows_ten_findings_of_a_kind():
    found = [Finding("warning", "duplicate", "train", f"number {n}\n") for n in range(12)]
    found.append(Finding("error", "unreadable image", "train", "last"))
    lines = Examination(found, [], {}).text().strip().split("\n")
    assert lines[0] == r"warning: train: number 0\n"
    assert lines[10] == "warning: train: 2 more of this kind (duplicate); --json lists all."
    assert lines[11:] == ["error: train: last", "1 error, 12 warnings."]
    assert len(Examination(found, [], {}).json()["findings"]) == 13


def test_table():
    table = Table(("class", "images"), [("cat", "1,000"), ("elephant", "5")])
    assert str(table) == "class     images\ncat        1,000\nelephant       5"


def run(root):
    command = [sys.executable, "-m", "train.check", "--config", "configs/common.py"]
    settings = [f"--config.data.folder={root}", "--config.data.image_size=24"]
    return subprocess.run(
        [*command, *settings],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_program(root):
    """An error gives the exit status 1."""
    write(root, {"train/cat/z.png": b""})
    done = run(root)
    assert done.returncode == 1
    assert "error: train: Cannot read the image" in done.stdout
    assert "Traceback" not in done.stderr


def test_json_and_warnings(root, tmp_path, monkeypatch, capsys):
    """Warnings do not fail."""
    write(root, {f"train/cat/{name}.png": encoded(9) for name in "xy"})
    file = tmp_path / "out" / "report.json"
    monkeypatch.setattr(command_line, "CONFIG", SimpleNamespace(value=configuration(root)))
    monkeypatch.setattr(json_flag, "_JSON", SimpleNamespace(value=str(file)))
    check.main([])
    output = capsys.readouterr().out
    assert "warning: train: " in output
    assert "0 errors, 1 warning." in output
    report = json.loads(file.read_text())
    assert (report["errors"], report["warnings"]) == (0, 1)
    assert report["findings"][0]["kind"] == "duplicate"
    assert report["splits"]["train"]["images"] == 6


def test_json_that_is_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.setattr(json_flag, "_JSON", SimpleNamespace(value=str(tmp_path)))
    with pytest.raises(SystemExit, match="is a folder: name a file"):
        check.main([])
    (tmp_path / "file").touch()
    value = SimpleNamespace(value=str(tmp_path / "file/report.json"))
    monkeypatch.setattr(json_flag, "_JSON", value)
    with pytest.raises(SystemExit, match="file is no folder, nor can be made"):
        check.main([])


def test_programs_with_the_same_flags_can_be_in_one_process():
    """absl has one table of flags for all modules."""
    for program in (REPOSITORY / "train").glob("*.py"):
        importlib.import_module(f"train.{program.stem}")
