"""Model FLOP utilisation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from replk_jax import create_model
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from train.reporting.utilization import Utilization, peak_flops, training_flops

SMALL = ResNetArchitecture((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("architecture", "multiply_adds", "tolerance"),
    [
        # The paper's, of the merged convolutions; the branches add less than 1 %.
        ("replknet_31b", 15.3e9, 0.012),
        # ResNet-50, as torchvision documents it.
        (ResNetArchitecture((3, 4, 6, 3)), 4.09e9, 0.002),
    ],
)
def test_published_operations(architecture, multiply_adds, tolerance):
    flops = training_flops(create_model(architecture), 224)
    assert flops == pytest.approx(6 * multiply_adds, rel=tolerance)


def test_operations_by_xla():
    """Of small kernels on large maps, for XLA leaves out the taps that fall on padding."""
    model = create_model(SMALL)
    variables = abstract_variables(model, (448, 448))
    image = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)

    def loss(params, batch_stats, image):
        return model.apply({"params": params, "batch_stats": batch_stats}, image).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 2)))
    counted = gradients.lower(variables["params"], variables["batch_stats"], image).cost_analysis()
    # XLA counts the batch norms as well.
    assert training_flops(model, 448) == pytest.approx(counted["flops"], rel=0.05)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("Tesla V100-SXM2-16GB", 15.7e12, 15.7e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
        ("A100-SXM4-40GB", 312e12, 156e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12, 494.5e12),
        ("NVIDIA H100 PCIe", 756.5e12, 378e12),
        ("NVIDIA H200", 989.5e12, 494.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("TPU v3", 61.5e12, 61.5e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("cpu", None, None),
        ("NVIDIA A10G", None, None),  # begins like another
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),  # a part of another
    ],
)
def test_peaks(kind, bfloat16, float32):
    assert peak_flops(kind, jnp.bfloat16) == bfloat16
    assert peak_flops(kind, jnp.dtype("float32")) == float32


def devices(*kinds):
    return [SimpleNamespace(device_kind=kind) for kind in kinds]


def test_utilization_over_devices():
    model = create_model(SMALL, dtype=jnp.dtype("bfloat16"))
    eight = Utilization(model, 64, devices(*["NVIDIA H200"] * 8)).metrics(10_000)
    assert eight == {
        "mfu": pytest.approx(10_000 * training_flops(model, 64) / (8 * 989.5e12), rel=1e-12)
    }
    one = Utilization(model, 64, devices("NVIDIA H200")).metrics(10_000)
    assert one["mfu"] == pytest.approx(8 * eight["mfu"])


def test_no_figure_where_a_peak_is_not_known():
    model = create_model(SMALL)
    assert Utilization(model, 64).metrics(100.0) == {}  # here, on a CPU
    assert Utilization(model, 64, devices("NVIDIA H200", "NVIDIA H300")).metrics(100.0) == {}
