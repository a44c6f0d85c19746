"""Each family against the numbers of the official PyTorch code in tests/golden.

They run in every checkout. The reference data of `reference_data.py` hold more cases and the
full-size networks.
"""

import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import replk_jax
from replk_jax.models.mobilenet_v2 import MobileNetV2Architecture
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.torch_import import convert_state_dict
from replk_jax.torch_import.convert import by_official_name, to_state_dict
from tests.golden.weights_rule import checksum, make_weights
from tests.reference_data import assert_close, nhwc, state_dict

FOLDER = Path(__file__).parent / "golden"
ARCHITECTURES = {
    "replknet": RepLKNetArchitecture,
    "repvgg": RepVGGArchitecture,
    "mobilenet_v2": MobileNetV2Architecture,
    "resnet": ResNetArchitecture,
}
MAX_BYTES = 3_000_000

pytestmark = pytest.mark.usefixtures("strict_promotion")
families = pytest.mark.parametrize("family", ARCHITECTURES)


@functools.cache
def facts(family: str) -> dict[str, Any]:
    """What made the numbers, the architecture, and how far float32 is from float64."""
    return json.loads((FOLDER / f"{family}.json").read_text())


@functools.cache
def arrays(family: str) -> dict[str, np.ndarray]:
    """Inputs and expected outputs, as README.md there describes them."""
    with np.load(FOLDER / f"{family}.npz") as file:
        return dict(file)


def with_prefix(family: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of the name; at least one."""
    found = {
        key.removeprefix(prefix): value
        for key, value in arrays(family).items()
        if key.startswith(prefix)
    }
    assert found
    return found


@functools.cache
def load(family: str) -> tuple[nn.Module, dict[str, Any]]:
    """The training-time network, and the official weights as its variables."""
    model = replk_jax.create_model(
        ARCHITECTURES[family](**facts(family)["architecture"]),
        num_classes=facts(family)["num_classes"],
    )
    return model, convert_state_dict(weights(family), model)


def weights(family: str) -> dict[str, np.ndarray]:
    """The state dict: from a file, or by the rule."""
    if (FOLDER / f"{family}.pth").exists():
        return state_dict(FOLDER / f"{family}.pth")
    return make_weights(facts(family)["shapes"], facts(family)["seed"])


@pytest.mark.parametrize("family", ["mobilenet_v2", "resnet"])
def test_weights_by_rule_are_those_of_the_numbers(family):
    assert checksum(weights(family)) == facts(family)["weights_sha256"]


@families
def test_outputs_and_stages(family):
    """1e-5 times the largest value: seven times the largest rounding on record, and below what
    the least noticeable slip on record changes (epsilon 1e-6 in every batch norm of RepVGG,
    2e-5)."""
    model, variables = load(family)
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    for name in ("x1", "x2"):
        logits, state = apply(variables, nhwc(arrays(family)[name]))
        assert_close(logits, arrays(family)[f"{name}.logits"], 1e-5, name)
        if name == "x1":
            stages = state["intermediates"]
    expected = with_prefix(family, "x1.stage")
    assert len(expected) == len(model.architecture.layers)
    for stage, value in expected.items():
        assert_close(stages[f"stage_{stage}"][0], nhwc(value), 1e-5, f"stage {stage}")


@families
def test_merged(family):
    """The merged network's logits, as above; its kernels are sums of products, of a few
    roundings."""
    model, variables = load(family)
    deploy, merged = model.clone(deploy=True), jax.jit(replk_jax.reparameterize)(variables)
    logits = jax.jit(deploy.apply)(merged, nhwc(arrays(family)["x1"]))
    assert_close(logits, arrays(family)["x1.merged_logits"], 1e-5, "logits")
    if family == "replknet":  # the official code merges the branches and keeps other norms
        tensors = to_state_dict(variables, model, merged=True)
    else:
        tensors = by_official_name(merged, deploy)
    for key, value in with_prefix(family, "merged.").items():
        assert_close(tensors[key], value, 1e-6, key)


@families
def test_training(family):
    """Logits, loss, running statistics and gradients of one pass in training mode.

    In the precision of the numbers: in float64 they agree to 1e-9, a hundredth of what float32
    resolves. In float32 the bounds are four times what the reference is from float64 (`noise`),
    or 1e-5 where by luck that is less.
    """
    expected, dtype = arrays(family), arrays(family)["train.loss"].dtype
    with jax.enable_x64(dtype == np.float64):
        outputs, tensors = training_pass(family, dtype)

    def bound(what: str) -> float:
        return 1e-9 if dtype == np.float64 else max(4 * facts(family)["noise"][what], 1e-5)

    for what, value in outputs.items():
        assert_close(value, expected[what], bound(what), what)
    after, norms = with_prefix(family, "train.after."), with_prefix(family, "train.grad_norm.")
    assert tensors.keys() == after.keys() | norms.keys()
    for key, value in after.items():
        assert_close(tensors[key], value, bound("train.after"), key)
    # Where the true gradient is zero, both sides hold rounding noise.
    compared = norms.keys() - set(facts(family)["zero_gradient"])
    for key in compared:
        norm = np.linalg.norm(tensors[key].astype(np.float64))
        assert abs(norm - norms[key]) <= bound("train.grad_norm") * norms[key], key
    for key, value in with_prefix(family, "train.grad.").items():
        if key in compared:
            error = np.linalg.norm(tensors[key].astype(np.float64) - value)
            assert error <= bound("train.grad_norm") * norms[key], key


def training_pass(
    family: str, dtype: np.dtype
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """Logits and loss; and by official name the gradients and the new running statistics."""
    model, variables = load(family)
    model = model.clone(dtype=dtype, param_dtype=dtype)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    images = nhwc(arrays(family)["train.x"]).astype(dtype)

    def loss_of(params):
        logits, state = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        labels = arrays(family)["train.labels"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, state)

    loss_and_grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (logits, state)), grads = loss_and_grads(variables["params"])
    tensors = by_official_name({"params": grads, **state}, model)
    return {"train.logits": logits, "train.loss": loss}, tensors


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < MAX_BYTES
