"""What README.md shows runs."""

import re
import shlex
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from replk_jax import cli, create_model, load_torch, save_torch
from replk_jax.models import registry
from tests.helpers import TINY, random_variables

PUBLISHED = "Published weights"
TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()


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
    (code,) = code_of("Use")
    names = {}
    exec(code.replace("224", "32"), names)
    assert names["logits"].shape == (1, 10)
    assert "max_abs" in capsys.readouterr().out


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
        cli.main(shlex.split(command))
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


VERBS = re.findall(r"^    python -m replk_jax (.*?)(?:  +#.*)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", VERBS)
def test_verbs_exist(command):
    """They are understood; what they do has tests of its own."""
    assert cli.make_parser().parse_args(shlex.split(command)).run


def test_figures():
    """The table's numbers are those that the package counts."""
    import replk_jax

    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for name, *figures in rows:
        counts = replk_jax.summary(replk_jax.create_model(name))
        expected = counts.training.parameters, counts.merged.parameters, counts.paper_flops
        assert figures == [f"{figure:,}" for figure in expected]
