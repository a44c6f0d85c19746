"""What all command-line programs share."""

import argparse
import os
import subprocess
import sys

import pytest

from replk_jax.cli.argument_types import positive, positive_number, user_path
from replk_jax.cli.clean_exit import clean_exit


def test_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x.pth") == tmp_path / "x.pth"
    assert str(user_path("a/~b")) == "a/~b"
    for path in ("", "~no_such_user/x"):
        with pytest.raises(argparse.ArgumentTypeError):
            user_path(path)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive, "0", "at least 1, got 0"),
        (positive, "-3", "at least 1, got -3"),
        (positive, "1.5", "a whole number, got '1.5'"),
        (positive, "", "a whole number, got ''"),
        (positive_number, "0", "more than 0"),
        (positive_number, "nan", "more than 0 and finite, got nan"),
        (positive_number, "inf", "more than 0 and finite, got inf"),
        (positive_number, "x", "a number, got 'x'"),
    ],
)
def test_numbers(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


def leave(code):
    raise SystemExit(code)


def interrupt():
    raise KeyboardInterrupt


def print_and_leave():
    print("x")
    leave(2)


@pytest.mark.parametrize(
    "program", [lambda: print("x"), lambda: print("x", flush=True), print_and_leave]
)
def test_a_reader_that_has_gone(monkeypatch, capfd, program):
    """With the buffer written at once, at the end, and where the program ends early."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as stopped, clean_exit():
            program()
    assert stopped.value.code == 141
    assert capfd.readouterr().err == ""


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), clean_exit():
        raise BrokenPipeError


def test_a_full_disk(monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with (
            pytest.raises(SystemExit, match="standard output cannot be written: No space left"),
            clean_exit(),
        ):
            print("x")


def test_ctrl_c(capfd):
    with pytest.raises(SystemExit) as stopped, clean_exit():
        interrupt()
    assert stopped.value.code == 130
    assert capfd.readouterr().err == "Interrupted.\n"


def test_other_errors_pass(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as of a program that was started without one
    with pytest.raises(ZeroDivisionError), clean_exit():
        _ = 1 / 0
    with pytest.raises(SystemExit) as stopped, clean_exit():
        leave(3)
    assert stopped.value.code == 3


def test_a_verb_whose_reader_has_gone():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        command = [sys.executable, "-m", "replk_jax", "models", "repvgg_a0"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_verb_whose_output_cannot_be_written(unbuffered):
    command = [sys.executable, "-m", "replk_jax", "models", "repvgg_a0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as stdout:
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
        )
    message = "error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
