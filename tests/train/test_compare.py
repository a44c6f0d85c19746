"""The table over finished runs."""

import json

import numpy as np
import pytest

from train.compare import main, read_run, table
from train.errors import RunError


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a finished run; the sections of `config` are its configuration's."""

    def run(
        name, score, ema=None, *, seed=0, examples=299, best_by="top1", protocol=None, **config
    ):
        folder = tmp_path / name
        folder.mkdir()
        scores = {"top1": 0.0, best_by: score}
        result = {
            "best_by": best_by,
            "training": {**scores, "examples": examples},
            "merged": dict.fromkeys(scores, 0.0),
        }
        if ema is not None:
            result["ema"] = {"training": {best_by: ema}, "merged": {best_by: 0.0}}
        if protocol is not None:
            result["protocol"] = protocol
        config = {"seed": seed, "epochs": 3.0, **config}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return run


def compared(*workdirs):
    """The table's head and rows."""
    lines = table([read_run(workdir) for workdir in workdirs]).splitlines()
    head, rule, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set(cell) <= {"-", ":"} for cell in rule)
    assert len({len(line) for line in lines}) == 1  # it is as readable as it stands
    return head, body


def statistics(values):
    """In per cent, by NumPy."""
    values = 100 * np.array(values)
    mean, deviation = f"{values.mean():.2f}", f"{values.std(ddof=1):.2f}"
    return [f"{mean} ± {deviation}", f"{values.min():.2f}", f"{values.max():.2f}"]


@pytest.mark.parametrize("kind", ["training", "ema"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_not_finite(run, kind, value, capsys):
    """As null, or as runs of earlier versions wrote it."""
    scores = {"training": 0.5, "ema": 0.5, kind: value}
    folder = run("diverged", scores["training"], 0.5, ema_decay=0.9)
    result = json.loads((folder / "result.json").read_text())
    result["ema"]["training"]["top1"] = scores["ema"]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="diverged: its top1 is NaN or infinite"):
        main([str(folder)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["result.json", "config.json"])
@pytest.mark.parametrize("content", ["[]", "3", "{", "null", '{"best_by": "top1"}'])
def test_damaged_files(run, name, content):
    folder = run("damaged", 0.5)
    (folder / name).write_text(content)
    with pytest.raises(RunError, match=r"damaged.* is damaged"):
        read_run(folder)


def kernel(size):
    return {"replknet": {"small_kernel": size, "layers": [1, 1]}}


def test_seeds_are_one_row(run):
    accuracies = np.random.default_rng(0).uniform(0.5, 0.9, (2, 3))
    workdirs = [
        run(f"{size}_{seed}", accuracies[row, seed], seed=seed, model=kernel(size))
        for seed in range(3)
        for row, size in enumerate((None, 3))
    ]
    assert compared(*workdirs) == (
        ["configuration", "runs", "top-1", "min", "max"],
        [
            ["model.replknet.small_kernel=None", "3", *statistics(accuracies[0])],
            ["model.replknet.small_kernel=3", "3", *statistics(accuracies[1])],
        ],
    )


def test_one_row_and_one_run(run):
    one, two = run("one", 0.5), run("two", 0.75, seed=1)
    assert compared(one)[1] == [["all runs", "1", "50.00", "50.00", "50.00"]]
    assert compared(one, two)[1] == [["all runs", "2", *statistics([0.5, 0.75])]]


def test_moving_averages_have_columns_where_there_are_any(run):
    head, (averaged, plain) = compared(
        run("a", 0.5, 0.75, seed=0, ema_decay=0.9),
        run("b", 0.25, 0.5, seed=1, ema_decay=0.9),
        run("c", 0.5, ema_decay=0.0),
    )
    assert head[-3:] == ["EMA top-1", "min", "max"]
    assert averaged == ["ema_decay=0.9", "2", *statistics([0.5, 0.25]), *statistics([0.75, 0.5])]
    assert plain == ["ema_decay=0.0", "1", "50.00", "50.00", "50.00", "", "", ""]


def test_the_score_is_that_of_the_task(run):
    head, rows = compared(*(run(f"{i}", 0.5, 0.25, seed=i, best_by="miou") for i in range(2)))
    assert head[2:] == ["miou", "min", "max", "EMA miou", "min", "max"]
    assert rows == [["all runs", "2", *statistics([0.5, 0.5]), *statistics([0.25, 0.25])]]


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"name": "digits", "data_dir": "/b", "reading": {"workers": 8, "threads": 2}}},
        {"data": {"name": "digits", "more_eval_splits": ["test"]}},
        {"model": {"name": "x", "remat": "full"}},
        {"checkpoints": {"keep": 9}},
        {"distributed": {"process_id": 1}},
        {"mesh": {"fsdp": 8}},
        {"eval_batch_size": 7, "eval_every_epochs": 7.0, "log_every_steps": 7},
        {"eval_every_steps": 7},
        {"profile": True, "wandb": "project"},
    ],
)
def test_what_does_not_bear_on_the_outcome_makes_no_row(run, other):
    both = {
        "data": {"name": "digits", "data_dir": "/a", "reading": {"workers": 0, "threads": 2}},
        "model": {"name": "x", "remat": None},
        "checkpoints": {"keep": 2},
        "distributed": {"process_id": 0},
        "mesh": {"fsdp": 1},
        "eval_batch_size": 1,
        "eval_every_epochs": 1.0,
        "eval_every_steps": None,
        "log_every_steps": 1,
        "profile": False,
        "wandb": None,
    }
    workdirs = run("a", 0.5, seed=0, **both), run("b", 0.5, seed=1, **both | other)
    assert len(compared(*workdirs)[1]) == 1


def test_rows_differ_in_what_begins_like_such_a_field(run):
    workdirs = run("a", 0.5, mesh_size=1, batch_size=1), run("b", 0.5, mesh_size=2, batch_size=2)
    assert [row[0] for row in compared(*workdirs)[1]] == [
        "mesh_size=1, batch_size=1", "mesh_size=2, batch_size=2",
    ]  # fmt: skip


def test_fields_that_some_runs_do_not_know(run):
    """As of a run from before there was such a field; and a value that Markdown would obey."""
    old, new = run("old", 0.5), run("new", 0.25, kernels=[13, 7], recipe="a|b")
    lines = table([read_run(old), read_run(new)]).splitlines()
    assert lines[2].startswith("| kernels=unset, recipe=unset ")
    assert lines[3].startswith(r"| kernels=(13, 7), recipe=a\|b ")


def test_runs_that_cannot_be_compared(run):
    one, again = run("one", 0.5, seed=3), run("again", 0.5, seed=3)
    with pytest.raises(RunError, match=r"one and .*again have the same .* seed, 3: leave one"):
        compared(one, again)
    with pytest.raises(RunError, match=r"one was evaluated on 299 images, .*other on 300"):
        compared(one, run("other", 0.5, seed=4, examples=300))
    with pytest.raises(
        RunError, match=r"score of .*one is top1, that of .*maps is miou: only runs of"
    ):
        compared(one, run("maps", 0.5, seed=4, best_by="miou"))


def test_folders_without_a_finished_run(run, tmp_path):
    with pytest.raises(RunError, match=r"There is no folder .*nothing"):
        read_run(tmp_path / "nothing")
    workdir = run("running", 0.5)
    (workdir / "result.json").write_text('{"training": {"top1": 0.5}}')
    with pytest.raises(RunError, match=r"running.result\.json has no `best_by`"):
        read_run(workdir)
    (workdir / "result.json").write_text('{"training": ')
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        read_run(workdir)
    (workdir / "result.json").unlink()
    with pytest.raises(RunError, match=r"running has no result\.json: its run is not finished"):
        read_run(workdir)
    (run("odd", 0.5) / "config.json").unlink()
    with pytest.raises(RunError, match=r"odd has no config\.json: it is not the folder"):
        read_run(tmp_path / "odd")


def test_program(run, tmp_path, capsys):
    main([str(run("one", 0.5))])
    out, err = capsys.readouterr()
    assert out.startswith("| configuration | runs | ")
    assert not err
    with pytest.raises(SystemExit) as stopped:  # Python prints it, with exit status 1
        main([str(tmp_path / "nothing")])
    assert stopped.value.code == f"error: There is no folder {tmp_path / 'nothing'}."


def test_the_protocol_of_a_test_is_beside_the_scores(run):
    """Pictures have no influence on them."""
    runs = [
        run("full", 0.5, best_by="mIoU", protocol="whole", test={"pictures": 4, "ratios": [1.0]}),
        run(
            "again", 0.6, best_by="mIoU", protocol="whole",
            test={"pictures": 0, "ratios": [1.0]}, seed=1,
        ),
        run(
            "two", 0.7, best_by="mIoU", protocol="scales 1 2",
            test={"pictures": 4, "ratios": [1.0, 2.0]},
        ),
    ]  # fmt: skip
    head, body = compared(*runs)
    assert head[:4] == ["configuration", "protocol", "runs", "mIoU"]
    assert [row[:3] for row in body] == [
        ["test.ratios=(1.0,)", "whole", "2"],
        ["test.ratios=(1.0, 2.0)", "scales 1 2", "1"],
    ]
