""".ci/gpu, without a GPU: what it would run is what there is to run."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from replk_jax.benchmark.torch_peers import check_network
from replk_jax.cli import make_parser
from replk_jax.models import create_model

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "gpu"
# Writes down what it is called with.
RECORDER = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$RECORD"
echo >> "$RECORD"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script with a recorder for Python; returns its status and the commands."""
    record = tmp_path / "record"
    recorder = tmp_path / "bin" / "python3"
    recorder.parent.mkdir()
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{recorder.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(record))

    def run(*arguments):
        record.write_text("")
        done = subprocess.run([SCRIPT, tmp_path / "out", *arguments], capture_output=True)
        return done.returncode, [shlex.split(line) for line in record.read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ([], 6),
        (["network", "replknet_31b", "384"], 5),
        (["network", "replknet_xl", "320"], 5),
        (["network", "repvgg_b1"], 5),
    ],
)
def test_benchmarks_are_known(run, part, count, tmp_path):
    status, commands = run(*part)
    assert status == 0
    parser, files = make_parser(), []
    benchmarks = [command[2:] for command in commands if command[:2] == ["-m", "replk_jax"]]
    assert len(benchmarks) == count
    for command in benchmarks:
        arguments = parser.parse_args(command)
        names = getattr(arguments, "model", [])
        for name in [names] if isinstance(names, str) else names:
            model = create_model(name)
            for peer in getattr(arguments, "peer", ()):
                check_network(peer, model.architecture)
        files += [arguments.json] if arguments.json else []
    assert len(set(files)) == len(files) >= 5
    assert {path.parent for path in files} == {tmp_path / "out"}
    assert (tmp_path / "out" / "log.txt").read_text().count("== after") >= count


def test_mistakes(run):
    assert run("networks") == (2, [])
    status, commands = run("network")
    assert (status, commands) == (1, [])
