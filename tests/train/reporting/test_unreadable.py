"""What becomes of reports that an image could not be read."""

import os

import numpy as np
import pytest

from train.errors import RunError
from train.reporting import unreadable
from train.reporting.unreadable import UnreadableList, reported


def batches(*lines):
    """Batches of 50, the first rows of which have the lines."""
    for of_batch in lines:
        field = np.array([*of_batch, *[""] * (50 - len(of_batch))])
        yield {"image": np.zeros((50, 2, 2, 3), np.uint8), "unreadable": field}


def test_reports_are_taken_out_of_the_batches():
    reports = []
    result = list(reported(batches(["a.png"], [], ["b.png\nc.png", "a.png"]), reports.append))
    assert reports == ["a.png", "b.png", "c.png", "a.png"]
    assert [list(batch) for batch in result] == [["image"]] * 3


def test_too_many_end_the_run():
    """More than one in a hundred, but not the first ten, and none is counted twice."""
    few = [[f"{i}.png"] for i in range(10)]
    assert len(list(reported(batches(*few, *few), lambda _: None))) == 20
    with pytest.raises(RunError, match=r"11 of the last 550 images could not be read.*end\.png"):
        list(reported(batches(*few, ["end.png"]), lambda _: None))
    # 20 of 2,000 may be; of 2,050 another one.
    rare = [[f"{i}.png"] if i % 2 else [] for i in range(42)]
    assert len(list(reported(batches(*rare), lambda _: None))) == 42
    with pytest.raises(RunError, match="22 of the last 2100"):
        list(reported(batches(*rare[:-1], ["x.png", "y.png"]), lambda _: None))


def test_what_fails_late_is_noticed(monkeypatch):
    """A run has seen hundreds of millions of images when a disk fails."""
    good = [[]] * 200
    bad = [[f"{i}.png"] for i in range(20)]
    assert len(list(reported(batches(*good, *bad), lambda _: None))) == 220
    monkeypatch.setattr(unreadable, "_WINDOW", 1000)
    with pytest.raises(RunError, match="11 of the last 550 images"):
        list(reported(batches(*good, *bad), lambda _: None))


def test_the_list_names_each_image_once(tmp_path):
    path = tmp_path / "unreadable_images.txt"
    said = []
    for _ in range(2):  # two runs, or a run resumed
        report = UnreadableList(path, said.append)
        for message in ("a.png is damaged.", "b.png is damaged.", "a.png is damaged."):
            report(message)
    assert said == path.read_text().splitlines() == ["a.png is damaged.", "b.png is damaged."]


def test_nothing_to_list_makes_no_file(tmp_path):
    UnreadableList(tmp_path / "unreadable_images.txt", print)
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_text_are_listed_once(tmp_path):
    """Escaped, and recognised at the next start, whatever bytes and breaks a file name has."""
    path = tmp_path / "unreadable_images.txt"
    names = [
        os.fsdecode(b"caf\xe9.jpg"),
        "a\nb.jpg",
        "c\u2028d\x85\r.jpg",
        "é大.jpg",
        "\x1b[2J.jpg",
    ]
    said = []
    for _ in range(2):
        report = UnreadableList(path, said.append)
        for name in names:
            report(f"Cannot read the image {name}: it is empty.")
    shown = [r"caf\udce9.jpg", r"a\nb.jpg", r"c\u2028d\x85\r.jpg", "é大.jpg", r"\x1b[2J.jpg"]
    expected = [f"Cannot read the image {name}: it is empty." for name in shown]
    assert path.read_text("utf-8").split("\n") == [*expected, ""]
    assert said == expected


def test_a_list_in_another_encoding_is_continued(tmp_path):
    path = tmp_path / "unreadable_images.txt"
    path.write_bytes(b"caf\xe9.jpg is damaged.\n")
    said = []
    UnreadableList(path, said.append)("b.jpg is damaged.")
    assert path.read_bytes() == b"caf\xe9.jpg is damaged.\nb.jpg is damaged.\n"
    assert said == ["b.jpg is damaged."]


def test_only_newlines_separate_reports():
    """Other characters at which `str.splitlines` breaks may be part of a name."""
    reports = []
    list(reported(batches(["a\x0b.png\nb\u2028.png"]), reports.append))
    assert reports == ["a\x0b.png", "b\u2028.png"]
