"""Private JAX is used in one module."""

import re
from pathlib import Path

import pytest

import replk_jax

ROOT = Path(replk_jax.__file__).parent.parent
PRIVATE = re.compile(r"\bjax\._(?!_)|\baxis_context\b|\bfrom jax(lib)?\b.*\bimport _")


@pytest.mark.parametrize("folder", ["replk_jax", "train", "configs"])
def test_private_jax_is_in_one_module(folder):
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if PRIVATE.search(path.read_text())
    ]
    assert users == (["replk_jax/compat.py"] if folder == "replk_jax" else [])
