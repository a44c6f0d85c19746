"""What is said of weights whose shapes do not give an architecture."""

import types

import pytest

from replk_jax.torch_import.shapes import Shapes


def test_no_stages():
    shapes = Shapes({"stage0.rbr_dense.conv.weight": types.SimpleNamespace(shape=(8,))}, "RepVGG")
    with pytest.raises(ValueError, match=r"its stages are missing: .*begin with stageN\.N\., and"):
        shapes.layers(r"stage(\d+)\.(\d+)\.")
