"""What importing the package costs and does."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys, time
import jax, flax
start = time.process_time()
import replk_jax
seconds = time.process_time() - start
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was initialised"
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "configs")]
assert not [n for n in ("tensorflow", "torch", "tensorflow_datasets", "grain") if n in sys.modules]
print(seconds)
"""


def test_import_is_light():
    """Under two seconds of CPU time; no backend, no training code, no data library."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2


def test_public_names_exist():
    import replk_jax

    for name in replk_jax.__all__:
        assert getattr(replk_jax, name).__doc__, name


def test_data_files_are_packaged():
    """The patterns of pyproject.toml match exactly the data that the package reads or declares."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    matched = {
        path
        for package, globs in patterns["package-data"].items()
        for pattern in globs
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    results = ROOT / "replk_jax" / "benchmark" / "results"  # for the README, and not installed
    data = {
        path
        for path in (ROOT / "replk_jax").rglob("*")
        if path.suffix not in (".py", ".pyc") and path.is_file() and path.parent != results
    }
    assert matched == data
    assert ROOT / "replk_jax" / "py.typed" in matched
