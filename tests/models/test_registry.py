"""Names of models."""

import jax.numpy as jnp
import pytest

import replk_jax
from replk_jax.models import registry


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


def test_unknown_name_says_what_exists():
    with pytest.raises(ValueError, match=r"Did you mean 'replknet_31b'") as caught:
        replk_jax.create_model("replknet_31bb")
    assert str(caught.value).endswith(
        "Registered are replknet_*, repvgg_*, mobilenet_*, resnet_*; list_models() has all names."
    )
    with pytest.raises(ValueError, match=r"^Unknown model 'convnext_tiny'\. Registered are"):
        replk_jax.create_model("convnext_tiny")


def test_the_patterns_in_messages_match_every_name():
    families = ("replknet", "repvgg", "mobilenet", "resnet")
    listed = [name for family in families for name in replk_jax.list_models(f"{family}_*")]
    assert listed == replk_jax.list_models()


@pytest.mark.parametrize(
    ("given", "registered"),
    [
        ("RepLKNet-31B", "replknet_31b"),
        ("replknet-31b", "replknet_31b"),
        ("RepLKNet-XL", "replknet_xl"),
        ("RepVGG-A0", "repvgg_a0"),
        ("RepVGG-D2se", "repvgg_d2se"),
        ("repvgg_a0.rvgg_in1k", "repvgg_a0"),
        ("mobilenetv2", "mobilenet_v2"),
        ("mobilenetv2_100", "mobilenet_v2"),
        ("mobilenetv2_100.ra_in1k", "mobilenet_v2"),
        ("MobileNet V2", "mobilenet_v2"),
        ("resnet18", "resnet_18"),
        ("resnet101", "resnet_101"),
        ("resnet101.tv_in1k", "resnet_101"),
        ("timm/resnet50.tv2_in1k", "resnet_50"),
        ("hf-hub:timm/resnet34.tv_in1k", "resnet_34"),
        # Of transformers, older versions of timm, GluonCV and NVIDIA, and mmpretrain.
        ("microsoft/resnet-50", "resnet_50"),
        ("google/mobilenet_v2_1.0_224", "mobilenet_v2"),
        ("mobilenet_v2_1.0_160", "mobilenet_v2"),
        ("tv_resnet50", "resnet_50"),
        ("swsl_resnet18", "resnet_18"),
        ("gluon_resnet50_v1b", "resnet_50"),
        ("ResNet50 v1.5", "resnet_50"),
        ("resnet50_8xb32_in1k", "resnet_50"),
        ("mobilenet-v2_8xb32_in1k", "mobilenet_v2"),
        ("repvgg-D2se_8xb32_in1k", "repvgg_d2se"),
        ("repvgg-A0_3rdparty_4xb64-coslr-120e_in1k", "repvgg_a0"),
        ("replknet-31B_in21k-pre_3rdparty_in1k-384px", "replknet_31b"),
    ],
)
def test_names_of_others(given, registered):
    assert registry.resolve_name(given) == registered
    assert replk_jax.create_model(given) == replk_jax.create_model(registered)


def test_every_name_means_itself():
    """However it is spelt: no two names differ in case and separators alone."""
    for name in replk_jax.list_models():
        for spelt in (name, name.upper(), name.replace("_", "-"), name.replace("_", "")):
            assert registry.resolve_name(spelt) == name


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("resnext50_32x4d", "a variant of ResNet"),
        ("resnet50d", "a variant of ResNet"),
        ("resnet50_gn", "a variant of ResNet"),
        ("resnetv2_50", "a variant of ResNet"),
        ("resnetv1d50_8xb32_in1k", "a variant of ResNet"),
        ("gluon_resnet50_v1d", "a variant of ResNet"),
        ("wide_resnet50_2", "a variant of ResNet"),
        ("seresnet50.ra2_in1k", "a variant of ResNet"),
        ("resnet26", "a ResNet of another depth"),
        ("mobilenetv2_140", "a MobileNetV2 of another width or depth"),
        ("mobilenetv2_110d.ra_in1k", "a MobileNetV2 of another width or depth"),
        ("google/mobilenet_v2_0.35_96", "a MobileNetV2 of another width or depth"),
        ("mobilenetv3_large_100", "a MobileNet other than V2"),
        ("google/mobilenet_v1_1.0_224", "a MobileNet other than V2"),
        ("RepVGGplus-L2pse", "RepVGGplus"),
        ("resnet101-63fe2227.pth", "a file. Load it with"),
    ],
)
def test_other_networks(given, reason):
    """Networks that exist under their names elsewhere are not taken for misspelt ones."""
    with pytest.raises(ValueError, match=f"^Unknown model '{given}': {reason}") as caught:
        replk_jax.create_model(given)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "hint"),
    [("RepVGG-A3", "repvgg_b3"), ("resnt50", "resnet_50"), ("mobilenet_v2_14", "mobilenet_v2_13")],
)
def test_misspelt_names(given, hint):
    with pytest.raises(ValueError, match=f"Unknown model '{given}'. Did you mean '{hint}"):
        replk_jax.create_model(given)


def test_patterns_of_other_spelling():
    assert replk_jax.list_models("RepVGG-A?") == ["repvgg_a0", "repvgg_a1", "repvgg_a2"]
    assert replk_jax.list_models("resnet1[05]*") == ["resnet_101", "resnet_152"]
    assert replk_jax.list_models("resnet50") == ["resnet_50"]
    assert replk_jax.list_models("REPVGG_[A-B]0") == ["repvgg_a0", "repvgg_b0"]
