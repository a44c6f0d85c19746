"""What is said of weights whose shapes do not give an architecture."""

import re
import types

import numpy as np
import pytest

from replk_jax import ResNetArchitecture, create_model, infer_architecture
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.writer import write_torch
from tests.helpers import random_variables

# What stands in place of "weight" after a tool of PyTorch, what it has done, and what undoes it.
TOOLS = {
    "prune": (("weight_orig", "weight_mask"), "pruned", "torch.nn.utils.prune.remove"),
    "weight_norm": (
        ("weight_g", "weight_v"),
        "weight-normalised",
        "torch.nn.utils.remove_weight_norm",
    ),
    "spectral_norm": (
        ("weight_orig", "weight_u", "weight_v"),
        "spectrally normalised",
        "torch.nn.utils.remove_spectral_norm",
    ),
    "parametrizations.weight_norm": (
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        "parametrized",
        "torch.nn.utils.parametrize.remove_parametrizations",
    ),
    "parametrizations.spectral_norm": (
        ("parametrizations.weight.original", "parametrizations.weight.0._u"),
        "parametrized",
        "torch.nn.utils.parametrize.remove_parametrizations",
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("module", ["conv1", "fc"])
def test_tensors_that_a_tool_has_replaced(tool, module):
    names, how, remedy = TOOLS[tool]
    weights = {f"{module}.{name}": types.SimpleNamespace(shape=(8,)) for name in names}
    shapes = Shapes(weights | {f"{module}.bias": types.SimpleNamespace(shape=(8,))}, "ResNet")
    message = f"{module}.weight is missing, .*: it has been {how} .*In PyTorch: {remedy}"
    with pytest.raises(ValueError, match=f"{message}\\(module, 'weight'\\)"):
        shapes.classes("fc") if module == "fc" else shapes.kernel("conv1.weight")


@pytest.mark.parametrize("only", ["conv1", r"\w.*conv\d"])
def test_a_parametrized_network(only, tmp_path):
    """Also one all of whose kernels have other names."""
    model = create_model(ResNetArchitecture((1, 1), (4, 8)), num_classes=3)
    weights = {}
    for name, value in to_state_dict(random_variables(model), model).items():
        if re.fullmatch(rf"{only}\.weight", name):
            module = name.removesuffix("weight")
            weights[f"{module}parametrizations.weight.original0"] = np.ones(
                (value.shape[0], 1, 1, 1), np.float32
            )
            name = f"{module}parametrizations.weight.original1"
        weights[name] = value
    write_torch(tmp_path / "file.pth", weights)
    with pytest.raises(ValueError, match=r"it has been parametrized .*remove_parametrizations"):
        infer_architecture(tmp_path / "file.pth")


@pytest.mark.parametrize("tool", TOOLS)
def test_names_of_pytorch(tool):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parametrizations, prune

    apply = {
        "prune": lambda conv: prune.identity(conv, "weight"),
        "weight_norm": torch.nn.utils.weight_norm,
        "spectral_norm": torch.nn.utils.spectral_norm,
        "parametrizations.weight_norm": parametrizations.weight_norm,
        "parametrizations.spectral_norm": parametrizations.spectral_norm,
    }
    conv = torch.nn.Conv2d(2, 2, 3)
    apply[tool](conv)
    assert set(TOOLS[tool][0]) <= conv.state_dict().keys()


def test_no_stages():
    shapes = Shapes({"stage0.rbr_dense.conv.weight": types.SimpleNamespace(shape=(8,))}, "RepVGG")
    with pytest.raises(ValueError, match=r"its stages are missing: .*begin with stageN\.N\., and"):
        shapes.layers(r"stage(\d+)\.(\d+)\.")
