"""What loading a full-size checkpoint takes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.writer import write_torch

PROGRAM = """
import json, pathlib, re, sys
import jax
import replk_jax

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])

jax.block_until_ready(jax.numpy.ones(3) + 1)
before = peak()
jax.block_until_ready(replk_jax.load_torch(sys.argv[1])[1])
print(json.dumps(peak() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's own peak")
def test_peak_memory_of_31b(tmp_path):
    """Beyond the interpreter's own, at most 1.3 times the size of the file."""
    model = replk_jax.create_model("replknet_31b")
    leaves = abstract_variables(model)
    variables = jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(1), leaf.shape), leaves)
    path = tmp_path / "31b.pth"
    write_torch(path, to_state_dict(variables, model))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True
    )
    size = path.stat().st_size
    assert size < json.loads(run.stdout) < 1.3 * size
