"""python -m replk_jax segment"""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax import Preprocessing, SegmentationProtocol, Segmenter
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.cli.segment import _table
from replk_jax.cli.segmentation_pictures import _percentage
from replk_jax.inference.image_program import ImageProgram
from replk_jax.vision.label_drawing import overlay
from replk_jax.vision.label_sets import default_palette
from tests.cli.test_images import run
from tests.helpers import TINY, random_variables
from tests.io.test_files import strict
from tests.vision.test_images import picture

NAMES = ("sky", "tree", "road", "car", "dog")
PROTOCOL = SegmentationProtocol((64, 32), window=32, stride=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = replk_jax.create_segmenter("fcn", TINY, 5, channels=8, auxiliary_channels=None)
    save(path, Checkpoint(model, random_variables(model), PROTOCOL, NAMES))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them in a folder of its own."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "more/c.png"]):
        Image.fromarray(picture(40 + i, 36, seed=i)).save(folder / name)
    return folder


PLACES = ("a", "b", "more/c")


def paths_of(folder):
    return [str(path) for path in sorted(folder.rglob("*.*"))]


def test_pictures_and_shares(weights, folder, tmp_path, capsys):
    output = tmp_path / "new" / "out"
    options = ["--weights", weights, "--output", output, "--json", "--batch-size", 2]
    status, out, err = run(capsys, "segment", folder, *options)
    assert (status, err) == (0, f"protocol: {PROTOCOL.in_words()}\n")
    segmenter = Segmenter.from_file(weights)
    paths = paths_of(folder)
    lines = [strict(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == paths
    wanted = zip(lines, paths, segmenter(paths), PLACES, strict=True)
    for line, path, classes, place in wanted:
        assert (line["height"], line["width"]) == classes.shape
        shares = {found["index"]: found["share"] for found in line["classes"]}
        assert shares == {i: (classes == i).mean() for i in np.unique(classes)}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert [found["name"] for found in line["classes"]] == [NAMES[i] for i in shares]

        assert line["class_map"] == str(output / f"{place}.png")
        with Image.open(line["class_map"]) as index:
            assert index.mode == "P"
            np.testing.assert_array_equal(np.asarray(index), classes)
            colours = np.asarray(index.convert("RGB"))
        np.testing.assert_array_equal(colours, default_palette(5)[classes])

        assert line["overlay"] == str(output / f"{place}_overlay.jpg")
        with Image.open(line["overlay"]) as drawn:
            drawn = np.asarray(drawn)
        expected = overlay(np.asarray(Image.open(path)), classes, default_palette(5))
        times = 384 // classes.shape[1]
        expected = expected.repeat(times, 0).repeat(times, 1)
        height, width, _ = expected.shape
        assert drawn.shape[0] > height  # the legend
        difference = np.abs(np.int16(drawn[:height, :width]) - expected)
        assert difference.mean() < 4  # JPEG
    assert {path.suffix for path in output.rglob("*.*")} == {".png", ".jpg"}


def test_table(weights, folder, capsys):
    path = folder / "a.png"
    status, out, _ = run(capsys, "segment", path, "--weights", weights)
    (classes,) = Segmenter.from_file(weights)(path)
    shares = sorted((-(classes == i).mean(), i) for i in np.unique(classes))
    assert status == 0
    title, *rows = out.splitlines()
    assert title == str(path)
    assert [row.split() for row in rows] == [[f"{-s:.2%}", str(i), NAMES[i]] for s, i in shares]


def test_a_table_names_ten_classes():
    """And the share of the others."""
    classes = np.repeat(np.arange(12, dtype=np.uint8), np.arange(12, 0, -1))[None]
    lines = _table("a.png", classes, [f"name {i}" for i in range(12)], {}).splitlines()
    assert lines[1] == "   15.38%      0  name 0"
    assert len(lines) == 12
    assert lines[-1] == "    3.85%  in 2 other classes"


def test_standard_input(weights, folder, tmp_path, capsys, monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO((folder / "a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    options = ["--weights", weights, "--output", tmp_path / "out", "--json"]
    status, out, _ = run(capsys, "segment", "-", *options)
    assert (status, json.loads(out)["image"]) == (0, "standard input")
    assert (tmp_path / "out" / "standard input.png").exists()


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        (["--whole"], SegmentationProtocol((64, 32))),
        (["--window", 24], SegmentationProtocol((64, 32), window=24, stride=16)),
        (["--stride", 30], SegmentationProtocol((64, 32), window=32, stride=30)),
        (
            ["--resize", 80, 40, "--ratios", 0.5, 1, "--flip"],
            SegmentationProtocol((80, 40), window=32, stride=16, ratios=(0.5, 1), flip=True),
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_another_protocol(options, protocol, weights, folder, capsys):
    path = folder / "a.png"
    status, out, err = run(capsys, "segment", path, "--weights", weights, "--json", *options)
    assert (status, err) == (0, f"protocol: {protocol.in_words()}\n")
    (classes,) = Segmenter.from_file(weights, protocol=protocol)(path)
    shares = {found["index"]: found["share"] for found in json.loads(out)["classes"]}
    assert shares == {i: (classes == i).mean() for i in np.unique(classes)}


def test_like_a_published_checkpoint(weights, folder, capsys):
    options = ["--weights", weights, "--like", "upernet_replknet_31b_ade20k.in22k", "--json"]
    status, _, err = run(capsys, "segment", folder / "a.png", *options, "--resize", 64, 32)
    said = "resize to at most 64 x 32, slide 640 stride 426, single scale"
    assert (status, err) == (0, f"protocol: {said}\n")


@pytest.mark.parametrize(("height", "width"), [(600, 1), (2, 70_000)])
def test_strips_have_pictures(height, width, weights, tmp_path, capsys):
    """Which a JPEG can hold: neither enlarged too much, nor longer than 65,500 pixels."""
    path, output = tmp_path / "strip.png", tmp_path / "out"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    status, _, err = run(capsys, "segment", path, "--weights", weights, "--output", output)
    assert (status, err.count("\n")) == (0, 1)
    with Image.open(output / "strip.png") as index:
        assert index.size == (width, height)
    with Image.open(output / "strip_overlay.jpg") as drawn:
        assert 12 * 14 <= drawn.width < 65_500
        assert max(height, 14) <= drawn.height < 65_500


def test_shares_in_a_legend():
    shown = [_percentage(share) for share in (1, 0.0951, 0.0949, 0.0006, 0.0004)]
    assert shown == ["100%", "10%", "9.5%", "0.1%", "<0.1%"]


def test_photographs_are_shown_upright(weights, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    pixels = picture(60, 40)
    pixels[:, :30] = 255  # the left half is white: upright, it is the upper one
    path, output = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(pixels).save(path, exif=exif)
    options = ["--weights", weights, "--output", output, "--json"]
    status, out, _ = run(capsys, "segment", path, *options)
    line = json.loads(out)
    assert (status, line["width"], line["height"]) == (0, 40, 60)
    with Image.open(line["class_map"]) as index:
        assert index.size == (40, 60)
        classes = np.asarray(index)
    expected = overlay(np.rot90(pixels, -1), classes, default_palette(5))
    drawn = np.asarray(Image.open(line["overlay"]))[: 60 * 9 : 9, : 40 * 9 : 9]
    assert np.abs(np.int16(drawn) - expected).mean() < 8  # JPEG


def test_weights_without_a_protocol(folder, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    model = replk_jax.create_segmenter("fcn", TINY, 2, channels=8, auxiliary_channels=None)
    save(path, Checkpoint(model, random_variables(model)))
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    arguments = ["segment", folder / "a.png", "--weights", path, "--json", "--names", names]
    status, out, err = run(capsys, *arguments, "--resize", 64, 32)
    assert (status, err) == (0, "protocol: resize to at most 64 x 32, whole, single scale\n")
    assert {found["name"] for found in json.loads(out)["classes"]} <= {"one", "two"}


def test_nothing_is_overwritten(weights, folder, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--weights", weights, "--output", output]
    (output / "more").mkdir(parents=True)
    there = output / "more" / "c_overlay.jpg"
    there.write_text("older")
    status, out, err = run(capsys, "segment", folder, *options)
    assert (status, out) == (2, "")
    assert err == f"error: {there} exists already; --force replaces it.\n"
    assert there.read_text() == "older"
    assert not (output / "a.png").exists()
    status, *_ = run(capsys, "segment", folder, *options, "--force")
    assert status == 0
    assert there.read_bytes().startswith(b"\xff\xd8")  # JPEG


def test_images_are_not_overwritten(weights, folder, capsys):
    """Even by force."""
    before = (folder / "a.png").read_bytes()
    options = ["--weights", weights, "--output", folder, "--force"]
    status, out, err = run(capsys, "segment", folder, *options)
    assert (status, out) == (2, "")
    assert err.endswith("its own picture would replace: name another folder.\n")
    assert (folder / "a.png").read_bytes() == before


def test_two_images_with_one_picture(weights, folder, tmp_path, capsys):
    other = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(other)
    options = ["--weights", weights, "--output", tmp_path / "out", "--force"]
    for images in ([folder, other], [folder / "a.png", other], [other, other]):
        status, out, err = run(capsys, "segment", *images, *options)
        first = other if images[0] == other else folder / "a.png"
        assert (status, out) == (2, "")
        assert f"error: {first} and {other} would both be written to" in err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(weights, folder, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    options = ["--weights", weights, "--output", tmp_path / "out"]
    status, _, err = run(capsys, "segment", folder, *options)
    assert status == 2
    assert "out" in err


def test_images_that_cannot_be_read(weights, folder, tmp_path, capsys):
    (folder / "b.jpg").write_bytes(b"no image")
    options = ["--weights", weights, "--output", tmp_path / "out", "--json"]
    status, out, err = run(capsys, "segment", folder, folder / "nowhere.png", *options)
    assert status == 1
    assert [json.loads(line)["image"] for line in out.splitlines()] == [
        str(folder / "a.png"),
        str(folder / "more" / "c.png"),
    ]
    assert f"error: Cannot read the image {folder / 'b.jpg'}: it is no image" in err
    assert f"error: Cannot read the image {folder / 'nowhere.png'}: No such file" in err
    assert not (tmp_path / "out" / "b.png").exists()


def test_images_with_logits_that_are_not_finite(weights, folder, tmp_path, capsys, monkeypatch):
    compute = ImageProgram.run_padded
    monkeypatch.setattr(
        ImageProgram,
        "run_padded",
        lambda self, pixels: compute(self, pixels).at[-1, 0, 0, 0].set(np.nan),
    )
    options = ["--weights", weights, "--output", tmp_path / "out", "--json", "--whole"]
    status, out, err = run(capsys, "segment", folder / "a.png", *options)
    assert (status, out) == (1, "")
    assert f"error: {folder / 'a.png'}: the network gives NaN or infinite values" in err
    assert not list((tmp_path / "out").iterdir())


def test_verbs_name_each_other(weights, folder, tmp_path, capsys):
    for verb, options in (("predict", []), ("features", ["--output", tmp_path / "f.npz"])):
        status, _, err = run(capsys, verb, folder, "--weights", weights, *options)
        assert status == 2
        assert "got a SegmentationNetwork. Segmenter runs it (python -m replk_jax segment)." in err
    path = tmp_path / "classifier.safetensors"
    model = replk_jax.create_model(TINY, num_classes=6)
    save(path, Checkpoint(model, random_variables(model), Preprocessing(32)))
    status, _, err = run(capsys, "segment", folder, "--weights", path)
    assert status == 2
    assert "Classifier runs classifiers (python -m replk_jax predict)." in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--whole", "--window", 32], "--whole excludes --window and --stride"),
        (["--window", 32, "--stride", 40], "stride must be at most the window of 32"),
        (["--whole", "--stride", 40], "--whole excludes"),
        (["--ratios", 0], "must be more than 0"),
        (["--resize", 32, 64], "the limit of the longer side first"),
    ],
)
def test_options_that_make_no_sense(options, message, weights, folder, capsys):
    status, _, err = run(capsys, "segment", folder, "--weights", weights, *options)
    assert status == 2
    assert message in err
