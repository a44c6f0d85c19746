"""What whole runs of the tiny configuration leave in their folders."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp

from train.reporting.metric_writers import read_metrics

STEPS = 4 * 46  # 1,498 digits in batches of 32


def newest(checkpoints):
    """The step of the latest complete checkpoint, or 0."""
    return max((int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), default=0)


def arrays(checkpoint):
    """All that it holds of the state."""
    items = ("params", "batch_stats", "opt_state", "ema")
    return jax.tree.leaves([ocp.PyTreeCheckpointer().restore(checkpoint / item) for item in items])


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def evaluations(workdir):
    return [line for line in read_metrics(workdir / "metrics.jsonl") if "eval/loss" in line]


def losses(workdir):
    """By the step that they were reported at; none where there are no metrics yet."""
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_curve(actual, expected):
    """Of `losses`. The order of sums differs, 1e-7, and Adam, which divides gradients by their
    size, makes that grow: a run was at 4e-7 after 35 steps, 1e-4 after 46, 1e-3 after 92, and at
    the end, where the loss is small, 1e-2. Half an epoch is held to 1e-5, the first to 1e-3."""
    assert actual.keys() == expected.keys()
    for step, loss in expected.items():
        rtol = 1e-5 if step <= 23 else 1e-3 if step <= 46 else 2e-2
        np.testing.assert_allclose(actual[step], loss, rtol=rtol)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(start, workdir, *overrides, **keywords):
    """Two hosts by configuration alone; each of `overrides` is a pair, one for each process."""
    port = free_port()
    return [
        start(
            workdir,
            f"--config.distributed.coordinator=127.0.0.1:{port}",
            "--config.distributed.num_processes=2",
            f"--config.distributed.process_id={process}",
            *(pair[process] for pair in overrides),
            **keywords,
        )
        for process in range(2)
    ]


def ends(processes):
    """Waits for them: [(status, output, errors), ...]."""
    with ThreadPoolExecutor() as pool:  # a full pipe would stop the one that is not read
        texts = list(pool.map(lambda process: process.communicate(timeout=300), processes))
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]
