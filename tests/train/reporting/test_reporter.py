"""What a run tells: lines, bar, files."""

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from train.errors import RunError
from train.reporting.console import duration, say, warn
from train.reporting.metric_writers import read_metrics
from train.reporting.reporter import Reporter


def events(workdir):
    """All of TensorBoard's events, in the order of their files: length, check sums, record."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(workdir):
    return [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]


def test_values_reach_lines_and_files(tmp_path, capsys):
    with Reporter(tmp_path, 0, 10) as reporter:
        training = {
            "train/loss": 1.5,
            "train/grad_norm": 0.25,
            "images_per_second": 1234.56,
            "data_wait": 0.125,
            "mfu": 0.5,
            "learning_rate": 0.00125,
            "epoch": 2.5,
        }
        reporter.scalars(5, training)
        reporter.scalars(10, {"eval/top1": 0.75, "eval/examples": 99, "eval_ema/top1": 0.5})
        reporter.scalars(10, {"eval/miou": 0.25, "eval/loss": 2.0, "eval/examples": 99})
        reporter.say("done")
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 5, **training},
        {"step": 10, "eval/top1": 0.75, "eval/examples": 99, "eval_ema/top1": 0.5},
        {"step": 10, "eval/miou": 0.25, "eval/loss": 2.0, "eval/examples": 99},
    ]
    assert scalars(tmp_path)[:2] == [(5, "train/loss", 1.5), (5, "train/grad_norm", 0.25)]
    assert (10, "eval_ema/top1", 0.5) in scalars(tmp_path)
    assert len(scalars(tmp_path)) == 13
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 5/10  loss 1.5  1,234.6 images/s  learning rate 0.00125  MFU 50.0%  data wait 12.5%",
        "step 10/10  eval  top-1 75.00%  eval_ema  top-1 50.00%",
        "step 10/10  eval  loss 2  miou 0.25",
        "done",
    ]
    assert err == ""  # no bar where there is no terminal


def test_time_that_is_left(tmp_path, capsys, monkeypatch):
    """From the wall time of the steps between the reports, whatever happened between them."""
    clock = iter([1000.0, 1000.0 + 600, 1000.0 + 600 + 300])
    monkeypatch.setattr(
        "train.reporting.reporter.time", SimpleNamespace(perf_counter=lambda: next(clock))
    )
    with Reporter(tmp_path, 40, 1000) as reporter:
        for step in (50, 100):
            reporter.scalars(step, {"train/loss": 1.0})
            reporter.scalars(step, {"eval/loss": 1.0})
        reporter.scalars(1000, {"train/loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 50/1000  loss 1"  # one report says nothing of the speed
    # 600 s for 50 steps, and 900 steps to go.
    assert lines[2] == "step 100/1000  loss 1  3 h 00 min left"
    assert lines[4] == "step 1000/1000  loss 1"


def test_only_the_last_reports_tell_the_speed(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(
        "train.reporting.reporter.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    with Reporter(tmp_path, 0, 130) as reporter:
        for step in range(1, 101):
            now[0] += 100.0 if step <= 80 else 1.0  # a slow beginning
            reporter.scalars(step, {"train/loss": 1.0})
    assert capsys.readouterr().out.endswith("30 s left\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (43_380, "12 h 03 min"),
        (86_399, "23 h 59 min"),
        (3 * 86_400 + 5 * 3600, "3 d 05 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


PROGRAM = """
import sys
from pathlib import Path
from train.reporting.console import warn
from train.reporting.reporter import Reporter
with Reporter(Path(sys.argv[1]), 1, 4) as reporter:
    for step in (2, 3):
        reporter.advance()
        reporter.scalars(step, {"train/loss": 0.5})
    reporter.scalars(3, {"eval/top1": 0.75})
    warn("look")
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
    assert "| 1/4" in shown
    assert re.search(r"\| 3/4, 0 s left, loss 0\.5", shown)
    lines = re.split(r"[\r\n]+", shown)
    assert "step 3/4  eval  top-1 75.00%" in lines
    assert "warning: look" in lines
    assert "step 2/4" not in shown  # the bar says it


@contextlib.contextmanager
def full_disk(most):
    """No file of this process grows beyond so many bytes."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an OSError
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_ends_no_run(tmp_path, capsys):
    """Each report that does not fit is warned of, and written when there is room again."""

    def report(steps):
        for step in steps:
            reporter.scalars(step, {"train/loss": 0.5})

    with Reporter(tmp_path, 0, 100) as reporter:
        report(range(1, 10))
        with full_disk(most=400):
            report(range(10, 40))
            reporter.draw_curve()
        report(range(40, 101))
    warning = f"warning: A report could not be written to {tmp_path}: [Errno 27] File too large"
    warnings = capsys.readouterr().err.splitlines()
    assert set(warnings) == {warning}
    assert 30 < len(warnings) <= 61  # of both files, and of the curve
    expected = list(range(1, 101))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == expected
    assert [step for step, _, _ in scalars(tmp_path)] == expected


def test_a_resumed_run_reports_every_step_once(tmp_path):
    with Reporter(tmp_path, 0, 10) as reporter:
        for step in (2, 4, 6):
            reporter.scalars(step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # killed while writing
    with Reporter(tmp_path, 4, 10) as reporter:
        reporter.scalars(6, {"train/loss": 60.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 60.0)]
    # TensorBoard forgets what it has of the steps from here on.
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts[-1] == 5


def test_an_inactive_reporter_writes_nothing(tmp_path, capsys):
    with Reporter(tmp_path, 0, 10, wandb="project", active=False) as reporter:
        reporter.scalars(1, {"train/loss": 1.0})
        reporter.advance()
        reporter.say("hello")
        reporter.draw_curve()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_is_said_and_warned_of(capsys):
    """From any process, with or without a reporter."""
    say("one")
    warn("two")
    assert capsys.readouterr() == ("one\n", "warning: two\n")


def test_curve(tmp_path):
    with Reporter(tmp_path, 0, 2) as reporter:
        reporter.scalars(1, {"train/loss": 2.0})
        reporter.draw_curve()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


class Wandb:
    """What is used of the package wandb, and what was done with it."""

    class Error(Exception):
        pass

    def __init__(self, failure=None):
        self.calls, self._failure = [], failure

    def init(self, **arguments):
        if self._failure:
            raise self.Error(self._failure)
        self.calls.append(("init", arguments))
        return SimpleNamespace(
            id=arguments["id"] or "k3x9",
            log=lambda values, step: self.calls.append(("log", step, values)),
            finish=lambda exit_code: self.calls.append(("finish", exit_code)),
        )


@pytest.fixture
def workdir(tmp_path):
    """A run's folder, as it is when the reporter begins."""
    (tmp_path / "config.json").write_text('{"optimizer": {"peak_lr": 0.1}}')
    return tmp_path


def test_wandb_goes_on_with_its_run(workdir, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with contextlib.suppress(KeyboardInterrupt), Reporter(workdir, 0, 10, wandb="digits") as first:
        first.scalars(5, {"train/loss": 1.5})
        raise KeyboardInterrupt
    with Reporter(workdir, 5, 10, wandb="digits") as second:
        second.scalars(10, {"train/loss": 1.0})
    started = {
        "project": "digits",
        "name": workdir.name,
        "resume": "allow",
        "dir": workdir,
        "config": {"optimizer": {"peak_lr": 0.1}},
        "allow_val_change": True,
    }
    assert wandb.calls == [
        ("init", {**started, "id": None}),
        ("log", 5, {"train/loss": 1.5}),
        ("finish", 1),
        ("init", {**started, "id": "k3x9"}),
        ("log", 10, {"train/loss": 1.0}),
        ("finish", 0),
    ]


def test_wandb_that_is_not_installed(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match=r"config\.wandb=digits .*pip install wandb"):
        Reporter(workdir, 0, 10, wandb="digits")


def test_wandb_that_does_not_begin(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("no API key"))
    with pytest.raises(RunError, match=r"(?s)config\.wandb=digits: no API key.*wandb login"):
        Reporter(workdir, 0, 10, wandb="digits")


def test_without_a_project_wandb_is_not_imported(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Reporter(workdir, 0, 10) as reporter:
        reporter.scalars(5, {"train/loss": 1.5})


def test_lines_for_the_user_can_always_be_printed(capsys):
    """With a name of any bytes, which cannot steer a terminal either."""
    say("caf\udce9\x1b[2J.png\nnext")
    warn("a\r.png")
    captured = capsys.readouterr()
    assert captured.out == "caf\\udce9\\x1b[2J.png\nnext\n"
    assert captured.err == "warning: a\\r.png\n"
