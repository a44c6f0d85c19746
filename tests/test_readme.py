"""What README.md shows runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from replk_jax import (
    Checkpoint,
    SegmentationProtocol,
    create_detector,
    create_model,
    create_segmenter,
    list_models,
    list_pretrained,
    load_torch,
    pretrained,
    reparameterize,
    save,
    save_torch,
    summary,
)
from replk_jax.cli.main import main, make_parser
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.models import registry
from replk_jax.reparam.table import BLOCKS
from tests.helpers import TINY, random_variables

PUBLISHED = "Published weights"
README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text()


def section(title):
    """The text under a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)[1]


def code_of(title):
    return re.findall(r"```python\n(.*?)```", section(title), re.DOTALL)


@pytest.fixture
def tiny(monkeypatch):
    """A tiny architecture under the name of the large one."""
    monkeypatch.setitem(registry.ARCHITECTURES, "replknet_31b", TINY)


def test_code(tiny, capsys):
    code, _ = code_of("Use")
    names = {}
    exec(code.replace("224", "32"), names)
    assert names["logits"].shape == (1, 10)
    assert "max_abs" in capsys.readouterr().out


def test_code_of_a_block(monkeypatch):
    """On kernels of ones and batch norms that only add 1: 2 in the middle, and a bias of 2."""
    monkeypatch.setattr("replk_jax.reparam.table.BLOCKS", list(BLOCKS))
    exec(code_of("Use")[1], {})
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    norm = {"scale": one, "bias": one, "mean": zero, "var": one}
    pair = {
        name: {"conv": {"kernel": np.ones((k, k, 2, 2), np.float32)}, "bn": norm}
        for name, k in (("large", 5), ("small", 3))
    }
    (merged,) = reparameterize({"params": {"pair": pair}})["params"]["pair"].values()
    expected = np.pad(np.ones((3, 3)), 1) + 1
    np.testing.assert_allclose(merged["kernel"][..., 0, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(merged["bias"], 2, rtol=1e-4)


MODELS = re.findall(r"`([a-z]+_\w+)`", TEXT.split("## Install")[0])


def test_models_of_the_table_exist():
    assert {"replknet_31b", "repvgg_a0", "mobilenet_v2", "resnet_152"} <= set(MODELS)
    assert set(MODELS) <= set(list_models())


def test_table_of_published_weights():
    """The stated licence is that of every checkpoint; no checkpoint is left out."""
    rows = re.findall(r"^\| (`[^|]*`) \|[^|]*\|[^|]*\| (\S+) \|$", section(PUBLISHED), re.MULTILINE)
    stated = {
        tag: licence
        for patterns, licence in rows
        for pattern in re.findall("`(.*?)`", patterns)
        for tag in list_pretrained(pattern)
    }
    assert stated == {entry.tag: entry.licence for entry in pretrained.PRETRAINED}


def test_code_of_the_operator(capsys):
    (code,) = code_of("The depthwise convolution alone")
    names = {}
    exec(code.replace("56", "28").replace("128", "8"), names)
    assert names["y"].shape == (4, 28, 28, 8)
    assert names["layer"].init(names["jax"].random.key(0), names["x"])
    assert "forward: dft" in capsys.readouterr().out


def test_published_weights(tiny, tmp_path, monkeypatch, capsys):
    """The commands and the code of this section, one after the other, as they stand there."""
    monkeypatch.chdir(tmp_path)
    model = create_model("replknet_31b")
    variables = random_variables(model)
    save_torch(variables, model, "RepLKNet-31B_ImageNet-1K_224.pth")
    Path("photos").mkdir()
    for name in ("cat.jpg", "photos/dog.jpg"):
        Image.fromarray(np.full((300, 260, 3), len(name), np.uint8)).save(name)

    for command in re.findall(r"^    python -m replk_jax (.*)$", section(PUBLISHED), re.MULTILINE):
        main(shlex.split(command))
    output = capsys.readouterr().out
    assert "83.48 % top-1" in output
    assert "dog.jpg" in output
    assert "training-time structure" in output
    with np.load("features.npz") as features:
        assert features["features"].shape == (1, 12)

    predicting, deploying, converting = code_of(PUBLISHED)
    names = {}
    exec(predicting, names)
    assert len(capsys.readouterr().out.splitlines()) == 2
    chex.assert_trees_all_equal(load_torch("back.pth")[1], variables)
    exec(deploying, names)
    expected = model.apply(variables, names["images"])
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4)  # rounding in float32
    pytest.importorskip("jax2onnx", reason="pip install 'replk-jax[onnx]'")
    exec(converting, names)
    assert Path("replknet.onnx").exists()


def test_segmentation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = create_segmenter("fcn", TINY, 3, channels=8, auxiliary_channels=None)
    protocol = SegmentationProtocol((64, 64))
    network = Checkpoint(model, random_variables(model), protocol, ("sky", "tree", "road"))
    save("segmenter.safetensors", network)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/dog.jpg"):
        Image.fromarray(np.full((60, 52, 3), len(name), np.uint8)).save(name)
    text = section("Segmentation")
    for command in re.findall(r"^    python -m replk_jax (.*)$", text, re.MULTILINE):
        main(shlex.split(command))
    written = {path.name for path in Path("out").iterdir()}
    assert written == {"photo.png", "photo_overlay.jpg", "dog.png", "dog_overlay.jpg"}
    capsys.readouterr()
    names = {}
    (code,) = code_of("Segmentation")
    exec(code, names)
    assert eval(capsys.readouterr().out) <= {"sky", "tree", "road"}
    assert (names["classes"].shape, names["probabilities"].shape) == ((60, 52), (60, 52, 3))


def test_detection(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = create_detector(
        "fcos", TINY, 3, neck_channels=8, neck_start_level=0, neck_num_outputs=2, channels=8,
        num_convs=1, num_groups=2, regression_limits=(32,), score_threshold=0.0, max_detections=5,
    )  # fmt: skip
    variables = random_variables(model)
    variables["params"]["bbox_head"]["conv_cls"]["bias"] = np.full(3, 4, np.float32)  # sure
    network = Checkpoint(model, variables, DetectionProtocol((64, 64)), ("cat", "dog", "cow"))
    save("detector.safetensors", network)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/dog.jpg"):
        Image.fromarray(np.full((60, 52, 3), len(name), np.uint8)).save(name)
    text = section("Detection")
    for command in re.findall(r"^    python -m replk_jax (.*)$", text, re.MULTILINE):
        main(shlex.split(command))
    written = {path.name for path in Path("out").iterdir()}
    assert written == {"photo_objects.jpg", "dog_objects.jpg"}
    results = json.loads(Path("out.json").read_text())
    assert {result["image"] for result in results} == {"photo.jpg", "photos/dog.jpg"}
    capsys.readouterr()
    names = {}
    (code,) = code_of("Detection")
    exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(names["found"].boxes) == 5
    assert {line.split()[0] for line in printed} <= {"cat", "dog", "cow"}


VERBS = re.findall(r"^    python -m replk_jax (.*?)(?:  +#.*)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", VERBS)
def test_verbs_exist(command):
    """They are understood; what they do has tests of its own."""
    assert make_parser().parse_args(shlex.split(command)).run


FIGURES = re.compile(r"<!-- figures: .*?<!-- end -->", re.DOTALL)


def test_measured_figures():
    """They are those of the reports, and there are none besides."""
    command = [sys.executable, ".ci/figures", "--check"]
    done = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unit = r"\d\s*(images/s|img/s|ms\b|milliseconds|times (as|what|faster|PyTorch))"
    assert len(re.findall(unit, TEXT)) >= 5
    assert re.findall(unit, FIGURES.sub("", TEXT)) == []


def test_figures():
    """The table's numbers are those that the package counts and lists."""
    table = TEXT.split("## Install")[0]
    rows = re.findall(
        r"`(\w+)` \| ([\d,]+) \| ([\d,]+) at (\d+) \| ([\d.]+)(?: to [\d.]+)? \|", table
    )
    assert len(rows) == 3
    for name, parameters, multiply_adds, size, top1 in rows:
        counts = summary(create_model(name), int(size))
        assert parameters == f"{counts.merged.parameters:,}"
        assert multiply_adds == f"{counts.paper_flops:,}"
        accuracy = pretrained.published_accuracy(name)
        assert (accuracy.top1, accuracy.image_size) == (float(top1), int(size))
