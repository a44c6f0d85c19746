"""python -m replk_jax predict, features"""

import io
import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax import Classifier, FeatureExtractor, Preprocessing, pretrained
from replk_jax.checkpoint import Checkpoint, save
from replk_jax.cli.main import main
from replk_jax.cli.predict import read_names
from replk_jax.inference.image_program import ImageProgram
from tests import reference_data
from tests.helpers import TINY, random_variables
from tests.io.test_files import strict
from tests.vision.test_images import picture

NAMES = ("ant", "bee, honey bee", "cat", "dog", "eel", "fox")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = replk_jax.create_model(TINY, num_classes=6)
    save(path, Checkpoint(model, random_variables(model), Preprocessing(32), NAMES))
    return path


@pytest.fixture
def folder(tmp_path):
    """Five images, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "c.png", "more/d.png", "more/e.png"]):
        Image.fromarray(picture(40 + i, 36, seed=i)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def paths_of(folder):
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def run(capsys, *argv):
    """The exit status, standard output and standard error."""
    status = 0
    try:
        main([str(argument) for argument in argv])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_predict_json(weights, folder, capsys):
    options = ["--weights", weights, "--json", "--top", 3, "--batch-size", 2]
    status, out, err = run(capsys, "predict", folder, folder / "a.png", *options)
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    paths = [*paths_of(folder), str(folder / "a.png")]
    assert [line["image"] for line in lines] == paths
    for line, wanted in zip(lines, Classifier.from_file(weights)(paths, top_k=3), strict=True):
        assert [p["index"] for p in line["predictions"]] == [p.index for p in wanted]
        assert [p["name"] for p in line["predictions"]] == [NAMES[p.index] for p in wanted]
        scores = [p["score"] for p in line["predictions"]]
        np.testing.assert_allclose(scores, [p.score for p in wanted], rtol=1e-4)


def test_predict_table(weights, folder, capsys):
    path = folder / "a.png"
    status, out, _ = run(capsys, "predict", path, "--weights", weights)
    (wanted,) = Classifier.from_file(weights)(path)
    assert status == 0
    title, *rows = out.splitlines()
    assert title == str(path)
    assert [row.split(maxsplit=2) for row in rows] == [
        [f"{p.score:.2%}", str(p.index), p.name] for p in wanted
    ]
    assert len(rows) == 5


def test_predict_standard_input(weights, folder, capsys, monkeypatch):
    path = folder / "more" / "d.png"
    stdin = SimpleNamespace(buffer=io.BytesIO(path.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    status, out, _ = run(capsys, "predict", "-", path, "--weights", weights, "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert status == 0
    assert first["image"] == "standard input"
    assert first["predictions"] == second["predictions"]


def test_predict_names_from_a_file(weights, folder, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("zero\none\ntwo\nthree\nfour\nfive\n")
    options = ["--weights", weights, "--names", names, "--json", "--top", 6]
    _, out, _ = run(capsys, "predict", folder / "a.png", *options)
    shown = {p["index"]: p["name"] for p in json.loads(out)["predictions"]}
    assert shown == dict(enumerate(names.read_text().split()))


def test_predict_names_in_another_encoding(weights, folder, tmp_path, capsys):
    """A byte order mark is no part of the first name; what is not UTF-8 is an error."""
    names = tmp_path / "names.txt"
    options = ["--weights", weights, "--names", names, "--json", "--top", 6]
    names.write_text("é\none\ntwo\nthree\nfour\nfive\n", "utf-8-sig")
    _, out, _ = run(capsys, "predict", folder / "a.png", *options)
    assert {p["name"] for p in json.loads(out)["predictions"]} >= {"é", "one"}
    names.write_text("zero\né\n", "latin-1")
    status, _, err = run(capsys, "predict", folder / "a.png", *options)
    assert status == 2
    assert f"{names} is not text in UTF-8 (byte 5 is 0xe9)" in err


def test_names_of_any_bytes(weights, folder, tmp_path, capsys):
    """Of images and of their folder, whole and damaged, in each kind of output."""
    place = tmp_path / "imag\udce9s\n"
    folder.rename(place)
    (place / "c.png").rename(place / "\udcff\n.png")
    (place / "b.png").rename(place / "\udcfe.png")
    (place / "\udcfe.png").write_bytes(b"no image")
    (place / "f.heic").touch()
    shown = rf"{tmp_path}/imag\udce9s\n"
    status, out, err = run(capsys, "predict", place, "--weights", weights)
    assert status == 1
    assert rf"{shown}/\udcff\n.png" in out.splitlines()
    warning, error = err.splitlines()
    assert warning.startswith(f"warning: {shown} has files that are not read as images: 1 .heic.")
    assert error.startswith(rf"error: Cannot read the image {shown}/\udcfe.png: it is no image")

    status, out, _ = run(capsys, "predict", place, "--weights", weights, "--json")
    images = [json.loads(line)["image"] for line in out.splitlines()]
    assert images[-1] == f"{tmp_path}/imag\\udce9s\n/\\udcff\n.png"  # JSON has line breaks

    output = tmp_path / "f\udcfd.npz"
    status, out, _ = run(capsys, "features", place, "--weights", weights, "--output", output)
    assert status == 1
    assert out.startswith(rf"{tmp_path}/f\udcfd.npz: 4 images")
    with np.load(output) as written:
        assert str(place / "\udcff\n.png") in written["names"]


def test_output_that_is_ascii(weights, folder, capsys, monkeypatch):
    """As of PYTHONIOENCODING=ascii, or where the locale has no other characters."""
    (folder / "a.png").rename(folder / "é.png")
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    main(["predict", str(folder / "é.png"), "--weights", str(weights)])
    assert stdout.buffer.getvalue().decode("ascii").startswith(f"{folder}/\\xe9.png\n")


def scores(out):
    return [p["score"] for line in out.splitlines() for p in json.loads(line)["predictions"]]


@pytest.mark.parametrize(
    "name", ["RepLKNet-31B_ImageNet-1K_384", "replknet-XL_meg73m-pre_3rdparty_in1k-320px"]
)
def test_predict_like_a_published_checkpoint(name, weights, folder, capsys):
    path = folder / "a.png"
    options = ["--weights", weights, "--json", "--top", 6]
    _, out, err = run(capsys, "predict", path, *options, "--like", name)
    preprocessing = pretrained.find(name).preprocessing
    (wanted,) = Classifier.from_file(weights, preprocessing=preprocessing)(path, top_k=6)
    np.testing.assert_allclose(scores(out), [p.score for p in wanted], rtol=1e-5)
    assert scores(out) != scores(run(capsys, "predict", path, *options)[1])
    assert err == ""


@reference_data.required
def test_the_moving_average(folder, tmp_path, capsys):
    path, weights = folder / "a.png", reference_data.ROOT / "checkpoints" / "training.pth"
    like = ["--like", "RepLKNet-31B_ImageNet-1K_224"]
    options = ["--weights", weights, "--json", "--top", 10, "--ema", *like]
    _, out, _ = run(capsys, "predict", path, *options)
    average = replk_jax.load(weights, prefer_ema=True)
    classifier = Classifier(average.model, average.variables, Preprocessing(224))
    (wanted,) = classifier(path, top_k=10)
    np.testing.assert_allclose(scores(out), [p.score for p in wanted], rtol=1e-5)
    output = tmp_path / "average.npz"
    run(capsys, "features", path, "--weights", weights, "--ema", "--output", output, *like)
    extractor = FeatureExtractor(average.model, average.variables, Preprocessing(224))
    for key, value in extractor(path).items():
        np.testing.assert_allclose(np.load(output)[key], value, rtol=1e-4, atol=1e-5)


def test_standard_input_is_one_image(weights, capsys):
    status, _, err = run(capsys, "predict", "-", "-", "--weights", weights)
    assert status == 2
    assert "can be read only once" in err


def test_names_of_classes_cannot_steer_a_terminal(folder, tmp_path, capsys):
    names = ("\x1b[2J", "a\nb", "\ud800", "\u202etac", "d" * 10_000, "f")
    model = replk_jax.create_model(TINY, num_classes=6)
    path = tmp_path / "named.safetensors"
    save(path, Checkpoint(model, random_variables(model), Preprocessing(32), names))
    status, out, _ = run(capsys, "predict", folder / "a.png", "--weights", path, "--top", 6)
    assert status == 0
    rows = out.splitlines()[1:]
    assert len(rows) == 6
    assert all(row.isprintable() and len(row) < 120 for row in rows)
    shown = {row.split(maxsplit=2)[2] for row in rows}
    assert shown >= {r"\x1b[2J", r"a\nb", r"\ud800", r"\u202etac", "f"}


@pytest.mark.parametrize("verb", ["predict", "features"])
def test_images_that_cannot_be_read_are_named_and_the_others_go_on(
    verb, weights, folder, tmp_path, capsys
):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    output = tmp_path / "features.npz"
    options = ["--weights", weights, *(["--output", output] if verb == "features" else ["--json"])]
    arguments = [folder, tmp_path / "nowhere.png", tmp_path / "empty", *options]
    status, out, err = run(capsys, verb, *arguments, "--batch-size", 1)
    assert status == 1
    errors = sorted(err.splitlines())
    assert len(errors) == 3
    assert errors[0].startswith(f"error: Cannot read the image {folder / 'b.png'}: ")
    assert "nowhere.png: No such file" in errors[1]
    assert errors[2] == f"error: There are no images in {tmp_path / 'empty'}."
    good = [path for path in paths_of(folder) if not path.endswith("b.png")]
    if verb == "predict":
        assert [json.loads(line)["image"] for line in out.splitlines()] == good
    else:
        assert list(np.load(output)["names"]) == good


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """Weights of a run that diverged, which make every output NaN."""
    path = tmp_path_factory.mktemp("weights") / "nan.safetensors"
    model = replk_jax.create_model(TINY, num_classes=6)
    variables = random_variables(model)
    variables["params"]["norm"]["bias"][:] = np.nan
    save(path, Checkpoint(model, variables, Preprocessing(32), NAMES))
    return path


@pytest.mark.parametrize("as_json", [False, True])
def test_predict_with_weights_that_are_not_finite(as_json, diverged, folder, capsys):
    options = ["--weights", diverged, *(["--json"] if as_json else [])]
    status, out, err = run(capsys, "predict", folder / "a.png", folder / "b.png", *options)
    assert (status, out) == (1, "")
    for name, line in zip("ab", err.splitlines(), strict=True):
        assert line.startswith(f"error: {folder / name}.png: the network gives NaN or infinite")


def test_features_that_are_not_finite(diverged, folder, tmp_path, capsys):
    output = tmp_path / "features.npz"
    options = ["--weights", diverged, "--output", output]
    status, out, err = run(capsys, "features", folder / "a.png", *options)
    assert (status, out) == (1, "")
    assert "NaN or infinite" in err
    assert err.endswith(f"error: there are no features, so {output} is not written.\n")
    assert not output.exists()
    output.write_text("older")
    status, _, err = run(capsys, "features", folder / "nowhere.png", *options, "--force")
    assert status == 1
    assert err.endswith(f"so {output} is not written; the older file stays.\n")
    assert output.read_text() == "older"


@pytest.mark.parametrize("verb", ["predict", "features"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_with_outputs_that_are_not_finite_are_named(
    verb, value, weights, folder, tmp_path, capsys, monkeypatch
):
    """And the results of the others in their batch are as without them."""
    bad = Preprocessing(32).pixels(folder / "b.png")
    compute = ImageProgram.run

    def run_with_overflow(self, pixels):
        outputs = jax.tree.map(np.array, compute(self, pixels))
        for leaf in jax.tree.leaves(outputs)[:1]:
            leaf[(pixels == bad).all((1, 2, 3)), 0] = value
        return outputs

    monkeypatch.setattr(ImageProgram, "run", run_with_overflow)
    output = tmp_path / "features.npz"
    options = ["--weights", weights, *(["--output", output] if verb == "features" else ["--json"])]
    status, out, err = run(capsys, verb, folder, *options)
    assert status == 1
    assert err.startswith(f"error: {folder / 'b.png'}: the network gives NaN or infinite values")
    assert err.count("error:") == 1
    monkeypatch.undo()
    good = [path for path in paths_of(folder) if not path.endswith("b.png")]
    if verb == "predict":
        lines = [strict(line) for line in out.splitlines()]
        assert [line["image"] for line in lines] == good
        for line, best in zip(lines, Classifier.from_file(weights)(good), strict=True):
            assert [p["index"] for p in line["predictions"]] == [p.index for p in best]
    else:
        written = np.load(output)
        assert list(written["names"]) == good
        for key, wanted in FeatureExtractor.from_file(weights)(good).items():
            np.testing.assert_allclose(written[key], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n  \n"])
def test_names_as_editors_write_them(newline, start, end, tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes((start + newline.join(NAMES) + end.replace("\n", newline)).encode())
    assert read_names(path) == list(NAMES)


def test_names_with_spaces_around_them(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("  ant \nbee, honey bee\t\n cat\n\n")
    assert read_names(path) == ["ant", "bee, honey bee", "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n", "6 classes; got 2 names in {path}. Write one name per class"),
        (b"one\n\nthree\n", "{path}: line 2 is blank"),
        (b"\none\n", "{path}: line 1 is blank"),
        (b"one\n \t\r\nthree\n", "{path}: line 2 is blank"),
        (b"one\n" * 7, "6 classes; got 7 names"),
        (b"", "has no names; write one name"),
        (b"\n \n", "has no names; write one name"),
        ("\u00e4".encode("latin-1"), "is not text in UTF-8"),
        ("one\n".encode("utf-16"), "is not text in UTF-8"),
    ],
)
def test_names_that_do_not_fit(content, message, weights, folder, tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    options = ["--weights", weights, "--names", path]
    status, _, err = run(capsys, "predict", folder / "a.png", *options)
    assert status == 2
    assert message.format(path=path) in err


def test_the_home_folder(weights, folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "w.safetensors").write_bytes(weights.read_bytes())
    options = ["--weights", "~/w.safetensors", "--names", "~/names.txt", "--json"]
    status, out, _ = run(capsys, "predict", "~/a.png", *options)
    assert status == 0
    assert strict(out)["image"] == str(folder / "a.png")
    options = ["--weights", "~/w.safetensors", "--output", "~/f.npz"]
    assert run(capsys, "features", "~/more", *options)[0] == 0
    assert (folder / "f.npz").is_file()


def test_features(weights, folder, tmp_path, capsys):
    output = tmp_path / "features.npz"
    options = ["--weights", weights, "--output", output, "--batch-size", 2]
    status, out, _ = run(capsys, "features", folder, *options)
    assert status == 0
    assert "5 images" in out
    assert "features (5, 12)" in out
    expected = FeatureExtractor.from_file(weights)(paths_of(folder))
    with np.load(output) as written:
        assert list(written["names"]) == paths_of(folder)
        assert set(written) == {"names", *expected}
        for key, value in expected.items():
            np.testing.assert_allclose(written[key], value, rtol=1e-4, atol=1e-5)
    status, _, err = run(capsys, "features", folder / "a.png", *options, "--maps")
    assert status == 2
    assert f"{output} exists already; --force" in err
    status, _, _ = run(capsys, "features", folder / "a.png", *options, "--maps", "--force")
    assert status == 0
    with np.load(output) as written:
        assert written["stage_0"].shape == (1, 8, 8, 8)
        assert written["stage_1"].shape == (1, 4, 4, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npz", "images"]


def test_what_cannot_be_written_leaves_nothing(weights, folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "features.npz"
    output.write_text("what was there")

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    options = ["--weights", weights, "--output", output, "--force"]
    status, _, err = run(capsys, "features", folder, *options)
    assert status == 2
    assert "No space left" in err
    assert output.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npz", "images"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "--weights", "x"], "IMAGE"),
        (["predict", "a.png"], "--weights"),
        (["predict", "a.png", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["predict", "a.png", "--weights", "x", "--top", "0"], "at least 1"),
        (["predict", "a.png", "--weights", "x", "--names", "nowhere.txt"], "nowhere.txt"),
        (["features", "a.png", "--weights", "x"], "--output"),
        (["features", "a.png", "--weights", "x", "--output", "nowhere/f.npz"], "no folder nowhere"),
        (["features", "a.png", "--weights", "x", "--output", "."], ". is a folder; name a file"),
        (["features", "a.png", "--weights", "x", "--output", ""], "it is empty"),
        (["predict", "", "--weights", "x"], "it is empty"),
        (["predict", "a.png", "--weights", ""], "it is empty"),
        (["predict", "~no_such_user/a.png", "--weights", "x"], "~no_such_user/a.png"),
        (["predict", "a.png", "--weights", "x", "--batch-size", "0"], "at least 1, got 0"),
        (["predict", "a.png", "--weights", "x", "--batch-size", "two"], "a whole number"),
    ],
)
def test_mistakes(argv, message, capsys):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert message in err
