"""Metrics on disk."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

from tensorboardX.proto.event_pb2 import Event

from train.reporting import Reporter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """(step, name, value) of all scalars in TensorBoard's files: length, check sums, record."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_values_reach_lines_and_files(tmp_path, capsys):
    with Reporter(tmp_path, 0, 10) as reporter:
        reporter.scalars(5, {"train/loss": 1.5, "images_per_second": 20.0})
        reporter.scalars(10, {"eval/top1": 0.75})
        reporter.say("done")
    assert lines(tmp_path) == [
        {"step": 5, "train/loss": 1.5, "images_per_second": 20.0},
        {"step": 10, "eval/top1": 0.75},
    ]
    assert events(tmp_path) == [
        (5, "train/loss", 1.5), (5, "images_per_second", 20.0), (10, "eval/top1", 0.75),
    ]  # fmt: skip
    out, err = capsys.readouterr()
    assert "step 5/10  train/loss 1.5  images_per_second 20" in out
    assert "done" in out
    assert err == ""  # no bar where there is no terminal


PROGRAM = """
import sys
from pathlib import Path
from train.reporting import Reporter
with Reporter(Path(sys.argv[1]), 1, 3) as reporter:
    for step in (2, 3):
        reporter.advance()
        reporter.scalars(step, {"train/loss": 0.5})
    reporter.scalars(3, {"eval/top1": 0.75})
"""


def test_a_terminal_shows_a_bar(tmp_path):
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=inner, stderr=inner)
    os.close(inner)
    shown = ""
    with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
        while data := os.read(outer, 4096):
            shown += data.decode()
    os.close(outer)
    assert process.wait() == 0, shown
    assert "1/3" in shown
    assert "3/3" in shown
    assert "loss=0.5" in shown
    assert "step 3/3  eval/top1 0.75" in shown
    assert "train/loss 0.5" not in shown  # the bar says it


def test_a_resumed_run_reports_every_step_once(tmp_path):
    with Reporter(tmp_path, 0, 10) as reporter:
        for step in (2, 4, 6):
            reporter.scalars(step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # killed while writing
    with Reporter(tmp_path, 4, 10) as reporter:
        reporter.scalars(6, {"train/loss": 60.0})
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [
        (2, 2.0), (4, 4.0), (6, 60.0),
    ]  # fmt: skip


def test_an_inactive_reporter_writes_nothing(tmp_path, capsys):
    with Reporter(tmp_path, 0, 10, active=False) as reporter:
        reporter.scalars(1, {"train/loss": 1.0})
        reporter.advance()
        reporter.say("hello")
        reporter.draw_curve()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_curve(tmp_path):
    with Reporter(tmp_path, 0, 2) as reporter:
        reporter.scalars(1, {"train/loss": 2.0})
        reporter.scalars(2, {"train/loss": 1.0})
        reporter.draw_curve()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
