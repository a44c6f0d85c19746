"""python -m replk_jax"""

import json

import pytest

from replk_jax.cli import main
from replk_jax.models import registry
from tests.helpers import TINY


def test_models_lists_all(capsys):
    main(["models"])
    out = capsys.readouterr().out
    assert "replknet_31b" in out
    assert "79,864,168" in out
    assert "79,388,776" in out
    assert "15,352,501,248" in out
    assert "15,636,547,584" in out


def test_models_counts_one(capsys):
    main(["models", "replknet_31b", "--image-size", "384"])
    out = capsys.readouterr().out
    for figure in ("79,864,168", "45,117,554,688", "45,952,303,104", "96x96x128"):
        assert figure in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models", "replknet_31"], "Did you mean"),
        (["models", "replknet_3", "--image-size", "0"], "at least 1"),
        (["bench", "model", "--model", "resnet"], "Unknown model"),
        (["bench", "model", "--modes", "sleep"], "invalid choice"),
        ([], "required"),
    ],
)
def test_mistakes_end_with_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_model(tmp_path, capsys, monkeypatch):
    """All modes of a tiny model; what is measured is not looked at."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", TINY)
    path = tmp_path / "report.json"
    settings = ["--image-size", "32", "--batch-size", "2", "--seconds", "0.01"]
    main(["bench", "model", "--model", "tiny", *settings, "--json", str(path)])
    report = json.loads(path.read_text())
    assert [t["mode"] for t in report["timings"]] == ["inference", "inference-merged", "training"]
    for timing in report["timings"]:
        assert timing["runs"] >= 3
        assert timing["images_per_second"] == pytest.approx(2 / timing["step_seconds"])
    assert report["jax"]
    out = capsys.readouterr().out
    assert "times as fast" in out
    assert "compile s" in out
