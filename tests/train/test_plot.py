"""Curves of runs."""

import json

import pytest
from PIL import Image

from train.errors import RunError
from train.plot import main
from train.reporting.curve import draw, figure
from train.reporting.metric_writers import read_metrics

LINES = [
    {"step": 10, "train/loss": 3.0, "train/grad_norm": 1.0, "learning_rate": 0.1, "mfu": 0.4},
    {"step": 20, "train/loss": 2.0, "train/grad_norm": 2.0, "learning_rate": 0.2, "mfu": 0.5},
    {"step": 20, "eval/loss": 2.5, "eval/top1": 0.5, "eval_ema/loss": 2.75, "eval_ema/top1": 0.25},
]
OTHER = [{"step": 10, "train/loss": 4.0}, {"step": 30, "train/loss": 1.0}]


def run(folder, lines=LINES):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def panel(picture, title):
    (axis,) = (axis for axis in picture.axes if axis.get_title() == title)
    return axis


def curves(picture, title):
    """What is drawn in a panel: {metric: points}; of several runs a list of them."""
    found = {}
    for line in panel(picture, title).get_lines():
        found.setdefault(line.get_label(), []).append(line.get_xydata().tolist())
    return found


def words(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_panels_of_one_run():
    picture = figure({"digits": LINES})
    assert curves(picture, "loss") == {
        "train/loss": [[[10, 3], [20, 2]]],
        "eval/loss": [[[20, 2.5]]],
        "eval_ema/loss": [[[20, 2.75]]],
    }
    assert words(panel(picture, "loss").get_legend()) == [
        "training", "evaluation", "EMA",
    ]  # fmt: skip
    assert curves(picture, "top-1")["eval_ema/top1"] == [[[20, 0.25]]]
    assert curves(picture, "learning rate") == {"learning_rate": [[[10, 0.1], [20, 0.2]]]}
    assert curves(picture, "norms") == {"train/grad_norm": [[[10, 1], [20, 2]]]}
    assert panel(picture, "norms").get_yscale() == "log"
    assert [axis.get_title() for axis in picture.axes] == [
        "loss", "top-1", "learning rate", "norms", "data wait, utilisation",
    ]  # fmt: skip
    last = panel(picture, "data wait, utilisation")
    assert words(last.get_legend()) == ["model FLOP utilisation"]


def test_scores_of_any_task():
    """Each has a panel, in the order in which they were reported; a count of examples has none."""
    scores = {"eval/miou": 0.5, "eval/examples": 9, "eval/loss": 1.0, "eval/pixels": 0.75}
    picture = figure({"maps": [LINES[0], {"step": 20, **scores, "eval_ema/miou": 0.25}]})
    assert [axis.get_title() for axis in picture.axes] == [
        "loss", "miou", "pixels", "learning rate", "norms", "data wait, utilisation",
    ]  # fmt: skip
    assert curves(picture, "miou") == {"eval/miou": [[[20, 0.5]]], "eval_ema/miou": [[[20, 0.25]]]}
    assert curves(picture, "pixels") == {"eval/pixels": [[[20, 0.75]]]}
    assert not picture.legends


def test_several_runs():
    picture = figure({"one": LINES, "two": OTHER})
    assert curves(picture, "loss")["train/loss"] == [[[10, 3], [20, 2]], [[10, 4], [30, 1]]]
    (legend,) = picture.legends
    assert words(legend) == ["one", "two"]
    colours = [line.get_color() for line in legend.get_lines()]
    drawn = [
        line.get_color()
        for line in panel(picture, "loss").get_lines()
        if line.get_label() == "train/loss"
    ]
    assert drawn == colours
    assert len(set(colours)) == 2
    # The styles are of the metrics, whichever runs have them.
    assert words(panel(picture, "loss").get_legend()) == [
        "training", "evaluation", "EMA",
    ]  # fmt: skip


def test_one_point_is_seen_and_many_are_a_line():
    one, many = panel(figure({"run": LINES}), "loss").get_lines()[1::-1]
    assert (one.get_label(), one.get_marker()) == ("eval/loss", ".")
    assert (many.get_label(), many.get_marker()) == ("train/loss", "")


def test_panels_of_what_there_is():
    assert [axis.get_title() for axis in figure({"one": OTHER, "two": OTHER}).axes] == ["loss"]


def test_a_folder_name_is_no_formula(tmp_path):
    workdirs = [run(tmp_path / "$x_{$", OTHER), run(tmp_path / "_two", OTHER)]
    draw(workdirs, tmp_path / "curve.svg")
    assert "<!-- $x_{$ -->" in (tmp_path / "curve.svg").read_text()
    (legend,) = figure({"$x_{$": LINES, "_two": OTHER}).legends
    assert words(legend) == ["$x_{$", "_two"]


def test_folder_names_of_any_bytes(tmp_path, capsys):
    """In the legend and in what is printed."""
    workdirs = [tmp_path / "a\udce9", tmp_path / "b\n"]
    for workdir in workdirs:
        workdir.mkdir()
        (workdir / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    output = tmp_path / "c\udce9.svg"
    main([*map(str, workdirs), "--output", str(output)])
    assert output.stat().st_size
    assert capsys.readouterr().out == f"{tmp_path}/c\\udce9.svg\n"


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = run(tmp_path / "digits") / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 30, "train/lo')
    assert read_metrics(path) == LINES


def test_where_the_picture_goes(tmp_path, capsys, monkeypatch):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", OTHER)
    monkeypatch.chdir(tmp_path)
    main([str(one)])
    main([str(one), str(two)])
    assert capsys.readouterr().out.splitlines() == [str(one / "curve.png"), "curve.png"]
    for path in (one / "curve.png", tmp_path / "curve.png"):
        with Image.open(path) as image:
            assert image.size == (2400, 960)  # two rows of four panels
    assert not (two / "curve.png").exists()


def test_folders_of_one_name_go_by_their_paths(tmp_path):
    workdirs = [run(tmp_path / name / "digits", OTHER) for name in "ab"]
    output = tmp_path / "both.svg"
    main([*map(str, workdirs), "--output", str(output)])
    for workdir in workdirs:
        assert f"<!-- {workdir} -->" in output.read_text()  # so matplotlib notes each text


def test_mistakes(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"There is no folder .*missing"):
        draw([tmp_path / "missing"], tmp_path / "curve.png")
    with pytest.raises(RunError, match=r"empty has no metrics yet, in metrics\.jsonl"):
        draw([tmp_path / "empty"], tmp_path / "curve.png")
    with pytest.raises(RunError, match=r"other has no metrics yet"):
        draw([run(tmp_path / "other", [{"step": 1, "speed": 2.0}])], tmp_path / "curve.png")
    with pytest.raises(SystemExit, match="error: There is no folder"):
        main([str(tmp_path / "missing")])
    workdir = run(tmp_path / "digits")
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        main([str(workdir), "--output", str(tmp_path / "nowhere" / "curve.png")])
    with pytest.raises(SystemExit):
        main([str(workdir), "--output", str(tmp_path / "curve.doc")])
    assert "the suffix must be .png, .svg or .pdf" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity"])
def test_metrics_that_are_not_finite(value, tmp_path, capsys):
    """The others are drawn, and the exit status says that something is wrong."""
    workdir = run(tmp_path / "digits")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 30, "train/loss": {value}}}\n')
    with pytest.raises(SystemExit, match="digits: train/loss is NaN or infinite at step 30"):
        main([str(workdir)])
    assert capsys.readouterr().out == f"{workdir / 'curve.png'}\n"
    assert (workdir / "curve.png").is_file()


@pytest.mark.parametrize("line", ["[1]", "null", "5", '{"train/loss": 1}', '{"step": 1, "x": "y"}'])
def test_a_line_that_is_no_report(line, tmp_path):
    workdir = run(tmp_path / "digits")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 4, is no report of a step"):
        draw([workdir], tmp_path / "curve.png")
