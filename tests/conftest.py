"""The CPU as eight devices; programs that are compiled quickly, and kept between runs."""

import os
import warnings
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"

# In the environment as well, for the programs that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# What the user has measured on this machine does not decide what is tested.
os.environ["REPLK_JAX_TABLES"] = str(CACHE / "no_tables")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_num_cpu_devices", 8)
# As users have it who want no broadcast that they did not write.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    # The tests count on eight devices, so a GPU is used only when it is asked for: -m gpu.
    if config.getoption("-m") != "gpu":
        jax.config.update("jax_platforms", "cpu")
        # XLA takes half as long to compile, and leaves most optimisations out.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items):
    # The long ones first, or one worker would be left alone with them at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def strict_promotion():
    """JAX neither broadcasts nor promotes dtypes implicitly."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def printed_warnings():
    """Our warnings are no errors: the command line prints them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield
