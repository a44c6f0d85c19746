"""What importing the package costs and does."""

import subprocess
import sys

PROGRAM = """
import sys, time
import jax, flax
start = time.perf_counter()
import replk_jax
seconds = time.perf_counter() - start
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was initialised"
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "configs")]
assert not [n for n in ("tensorflow", "torch", "tensorflow_datasets", "grain") if n in sys.modules]
print(seconds)
"""


def test_import_is_light():
    """Under two seconds beyond jax and flax; no backend, no training code, no data library."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2


def test_public_names_exist():
    import replk_jax

    for name in replk_jax.__all__:
        assert getattr(replk_jax, name).__doc__, name
