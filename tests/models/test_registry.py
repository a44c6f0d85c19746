"""Names of models."""

import jax.numpy as jnp
import pytest

import replk_jax


def test_names():
    assert replk_jax.list_models("replknet_*") == [
        "replknet_3", "replknet_7", "replknet_13", "replknet_25",
        "replknet_31b", "replknet_31l", "replknet_xl",
    ]  # fmt: skip
    assert replk_jax.list_models("repvgg_*") == [
        "repvgg_a0", "repvgg_a1", "repvgg_a2", "repvgg_b0", "repvgg_b1", "repvgg_b1g2",
        "repvgg_b1g4", "repvgg_b2", "repvgg_b2g2", "repvgg_b2g4", "repvgg_b3", "repvgg_b3g2",
        "repvgg_b3g4", "repvgg_d2se",
    ]  # fmt: skip
    assert len(replk_jax.list_models("mobilenet_v2*")) == 11
    assert replk_jax.list_models("resnet*") == [
        "resnet_18", "resnet_34", "resnet_50", "resnet_101", "resnet_152",
    ]  # fmt: skip
    assert replk_jax.list_models("vit*") == []


def test_overrides_reach_module_and_architecture():
    model = replk_jax.create_model(
        "replknet_31b", num_classes=7, kernel_sizes=[13, 13, 13, 7], dtype=jnp.bfloat16
    )
    assert model.num_classes == 7
    assert model.dtype == jnp.bfloat16
    assert model.architecture.kernel_sizes == (13, 13, 13, 7)
    assert model.architecture.channels == (128, 256, 512, 1024)
    assert replk_jax.create_model("replknet_31b").architecture.kernel_sizes == (31, 29, 27, 13)


def test_lists_become_tuples():
    model = replk_jax.create_model("replknet_31b", out_indices=[0, 2], kernel_sizes=[7, 7, 7, 7])
    assert model.out_indices == (0, 2)
    assert hash(model) == hash(model.clone())


def test_an_architecture_of_ones_own():
    arch = replk_jax.RepLKNetArchitecture((7, 5), (1, 1), (32, 64))
    assert replk_jax.create_model(arch, small_kernel=3).architecture.small_kernel == 3
    assert replk_jax.create_model(name="replknet_xl").architecture.dw_ratio == 1.5


def test_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"Did you mean 'replknet_31b'.*replknet_xl"):
        replk_jax.create_model("replknet_31bb")


def test_unknown_field_lists_what_exists():
    with pytest.raises(TypeError, match=r"Unknown field classes\..*num_classes.*kernel_sizes"):
        replk_jax.create_model("replknet_31b", classes=3)


def test_neither_name_nor_architecture():
    with pytest.raises(TypeError, match="name or an architecture"):
        replk_jax.create_model(31)
