""".ci/gpu, without a GPU: what it would run is what there is to run."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from replk_jax.benchmark.torch_peers import check_network
from replk_jax.cli.main import make_parser
from replk_jax.models import create_model

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "gpu"
# Writes down what it is called with.
RECORDER = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$RECORD"
echo >> "$RECORD"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script with a recorder for Python; returns its status and benchmarks."""
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
        commands = [shlex.split(line) for line in record.read_text().splitlines()]
        ours = [command[2:] for command in commands if command[:2] == ["-m", "replk_jax"]]
        return done.returncode, [make_parser().parse_args(command) for command in ours]

    return run


def programs(arguments):
    """What a benchmark or a profile would time: (mode, batch size, type) -> contenders."""
    batches = arguments.batch_size
    for batch in batches if isinstance(batches, list) else [batches]:
        for mode in arguments.modes:
            ours = {"replk_jax", *getattr(arguments, "implementations", ())}
            yield (mode, batch, arguments.dtype), ours | set(getattr(arguments, "peer", ()))


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ([], 6),
        (["training", "replknet_31b", "384"], 4),
        (["training", "repvgg_b1"], 4),
        (["inference", "replknet_xl", "320"], 4),
        (["inference", "mobilenet_v2_13_reparam"], 4),
    ],
)
def test_benchmarks_are_known(run, part, count, tmp_path):
    status, benchmarks = run(*part)
    assert status == 0
    assert len(benchmarks) == count
    files = [arguments.json for arguments in benchmarks if arguments.json]
    assert len(set(files)) == len(files)
    assert {path.parent for path in files} == {tmp_path / "out"}
    assert not part or all(path.name.startswith(part[1]) for path in files)
    for arguments in benchmarks:
        names = getattr(arguments, "model", [])
        for name in [names] if isinstance(names, str) else names:
            model = create_model(name)
            for peer in getattr(arguments, "peer", ()):
                check_network(peer, model.architecture)


def test_training_is_measured_in_full(run):
    _, benchmarks = run("training", "replknet_31b")
    measured = {}
    for arguments in benchmarks:
        if arguments.subject == "model":
            measured |= programs(arguments)
    assert set(measured) == {("training", batch, "bfloat16") for batch in (64, 128)}
    timm = {
        f"timm:{name}" for name in ("convnext_base", "resnet50", "swin_base_patch4_window7_224")
    }
    peers = {"torch", *timm}
    assert measured["training", 128, "bfloat16"] == {"replk_jax", "xla"} | peers
    compiled = {f"{peer}+compile" for peer in peers}
    assert measured["training", 64, "bfloat16"] == {"replk_jax", "xla"} | peers | compiled


def test_inference_is_measured_in_full(run):
    _, benchmarks = run("inference", "replknet_31b", "384")
    measured = {}
    for arguments in benchmarks:
        if arguments.subject == "model":
            measured |= programs(arguments)
    assert set(measured) == {
        (mode, batch, dtype)
        for mode in ("inference", "inference-merged")
        for batch in (1, 8, 64, 128)
        for dtype in ("float32", "bfloat16")
    }
    assert all("timm:swin_base_patch4_window12_384" in peers for peers in measured.values())
    assert "torch+compile" in measured["inference-merged", 64, "bfloat16"]


def test_mistakes(run):
    assert run("networks") == (2, [])
    assert run("training") == (1, [])
