"""What README.md shows runs."""

import re
import shlex
from pathlib import Path

import pytest

from replk_jax import cli
from replk_jax.models import registry
from tests.helpers import TINY

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_code(monkeypatch, capsys):
    """With a tiny architecture under the name of the large one."""
    monkeypatch.setitem(registry.ARCHITECTURES, "replknet_31b", TINY)
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    names = {}
    exec(code.replace("224", "32"), names)
    assert names["logits"].shape == (1, 10)
    assert "max_abs" in capsys.readouterr().out


def test_code_of_the_operator(capsys):
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    names = {}
    exec(code.replace("56", "28").replace("128", "8"), names)
    assert names["y"].shape == (4, 28, 28, 8)
    assert names["layer"].init(names["jax"].random.key(0), names["x"])
    assert "forward: dft" in capsys.readouterr().out


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
