"""Files of networks that are not supported are named.

The names are those of timm and torchvision.
"""

import re
import types

import pytest

from replk_jax import create_model
from replk_jax.models.registry import ARCHITECTURES
from replk_jax.torch_import import names as torch_names
from replk_jax.torch_import.families import family_of, known_families
from replk_jax.torch_import.other_networks import identify, identify_with_prefix, message
from replk_jax.torch_import.places import places_of
from replk_jax.torch_import.structures import Structure
from tests.miniatures import miniature

BLOCK = "stages.0.blocks.0."
MOBILE = "blocks.1.0."
EFFICIENTNET = "EfficientNet or MobileNetV3"
BYOB = "a network that timm builds as ByobNet"

# By a network of timm (torchvision's after "tv"): what it is, and names of it.
OTHERS = {
    # Mobile networks that have names of MobileNetV2's, too.
    "efficientnet_es": (EFFICIENTNET, "conv_stem", "blocks.0.0.conv_exp", MOBILE + "conv_pwl"),
    "mobilenet_edgetpu_v2_m": (EFFICIENTNET, "blocks.0.0.conv", MOBILE + "conv_exp"),
    "mobilenetv4_conv_medium": ("MobileNetV4", MOBILE + "dw_start.conv", MOBILE + "pw_exp.conv"),
    "mobilenetv4 first block": ("MobileNetV4", "blocks.0.0.conv_exp", MOBILE + "pw_proj.bn"),
    "mobilenetv5_300m": ("MobileNetV5", "blocks.0.0.conv_exp", MOBILE + "layer_scale.gamma"),
    "ghostnet_100": ("GhostNet", MOBILE + "ghost1.primary_conv.0", MOBILE + "se.conv_reduce"),
    "ghostnetv3_100": ("GhostNet", MOBILE + "ghost1.cheap_rpr_scale.conv", MOBILE + "conv_dw"),
    "hardcorenas_a": (f"{EFFICIENTNET}.*HardCoRe-NAS", MOBILE + "se.conv_reduce", "conv_head"),
    "tv mnasnet": ("MnasNet", "layers.0", "layers.8.0.layers.0"),
    "rexnet_100": ("ReXNet", "stem.conv", "features.0.conv_dw.conv", "features.0.conv_pwl.conv"),
    # Networks that have blocks in stages.
    "fasternet_t0": ("FasterNet", "patch_embed.proj", BLOCK + "spatial_mixing.partial_conv3"),
    "efficientvim_m1": ("EfficientViM", "patch_embed.conv.0.conv", BLOCK + "mixer.hz_proj.conv"),
    "shvit_s1": ("SHViT", "patch_embed.0.c", BLOCK + "conv.m.c"),
    "pvt_v2_b0": ("PVTv2", "patch_embed.proj", BLOCK + "norm1", BLOCK + "mlp.dwconv"),
    "edgenext_small": ("EdgeNeXt", BLOCK + "gamma", BLOCK + "conv_dw", BLOCK + "xca.qkv"),
    "inception_next_tiny": ("InceptionNeXt", BLOCK + "gamma", BLOCK + "token_mixer.dwconv_hw"),
    "convnext_tiny": ("ConvNeXt", "stem.0", BLOCK + "gamma", BLOCK + "conv_dw"),
    "iformer_s": ("iFormer", "stem.conv1.c", BLOCK + "mixer.module.0.c"),
    "repvit_m1": ("RepViT", "stem.conv1.c", BLOCK + "token_mixer.conv.c"),
    "efficientformer_l1": (
        "EfficientFormer", "stem.conv1", BLOCK + "norm1", BLOCK + "token_mixer.attention_biases",
    ),
    "swiftformer_xs": (
        "SwiftFormer", BLOCK + "layer_scale.gamma", BLOCK + "local_representation.dwconv",
    ),
    "caformer_s18": (
        "MetaFormer", "stem.conv", BLOCK + "norm1", BLOCK + "token_mixer.pwconv1",
    ),
    "poolformer_s12": ("MetaFormer", "stem.conv", BLOCK + "norm1", BLOCK + "layer_scale1.scale"),
    "fastvit_t8": ("FastViT", "stem.0.conv_kxk.0.conv", BLOCK + "token_mixer.mixer.conv_kxk.0.bn"),
    "coatnet_0_224": ("CoAtNet or MaxViT", "stem.conv1", BLOCK + "shortcut.expand"),
    "maxvit_tiny_tf_224": ("CoAtNet or MaxViT", BLOCK + "conv.pre_norm", BLOCK + "attn_grid.norm1"),
    "tv maxvit": (
        "CoAtNet or MaxViT", "stem.0.0", "blocks.0.layers.0.layers.MBconv.layers.conv_a.0",
    ),
    "nextvit_small": ("Next-ViT", "stem.0.conv", BLOCK + "mhca.norm", BLOCK + "norm1"),
    "mvitv2_base": ("MViT", "patch_embed.proj", BLOCK + "attn.pool_q", BLOCK + "norm1"),
    "swinv2_cr_base_224": ("Swin Transformer", "patch_embed.proj", BLOCK + "attn.meta_mlp.fc1"),
    "resnetv2_50": ("ResNetV2", "stem.conv", BLOCK + "norm1", BLOCK + "conv1"),
    "mambaout_base": ("MambaOut", "stem.conv1", BLOCK + "fc1", BLOCK + "conv"),
    "hgnet_tiny": ("HGNet", "stem.stem.0.conv", BLOCK + "aggregation.0.conv"),
    # Relatives of ResNet.
    "resnet33ts": (BYOB, "stem.conv1.conv", "stages.0.0.conv1_1x1.conv", "final_conv.conv"),
    "gernet_l": (BYOB, "stem.conv", "stages.0.0.conv1_kxk.conv", "final_conv.conv"),
    "nf_resnet50": ("without normalization", "stem.conv", "stem.conv.gain", "stages.0.0.conv1"),
    "botnet26t_256": ("self-attention", "stages.0.0.conv1_1x1.conv", "stages.2.1.self_attn.qkv"),
    "cspdarknet53": ("DarkNet", "stem.conv1.conv", "stages.0.conv_down.conv"),
    "tv r3d_18": ("a ResNet for video", "stem.0", "layer1.0.conv1.0"),
    "resnet50d": ("ResNet-D", "conv1.0", "conv1.3", "conv1.6", "layer1.0.conv1"),
    "mixer_b16_224": ("an MLP", "stem.proj", "blocks.0.mlp_tokens.fc1"),
    "vit_base_patch16_224": ("a vision transformer", "cls_token", "blocks.0.attn.qkv"),
}  # fmt: skip


def tensors(shapes):
    return {name: types.SimpleNamespace(shape=shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("network", OTHERS)
def test_by_names(network):
    label, *modules = OTHERS[network]
    keys = [f"{module}.weight" for module in modules]
    shaped = tensors(dict.fromkeys(keys, (8, 8, 1, 1)))
    found = identify(shaped)
    assert found is not None
    assert re.search(label, found)
    # Whatever the order, within another module, and with timm's features_only=True.
    assert identify(dict(reversed(shaped.items()))) == found
    assert identify_with_prefix([f"model.{key}" for key in keys]) == found
    flat = [key.replace("stages.", "stages_") for key in keys]
    assert identify(tensors(dict.fromkeys(flat, (8, 8, 1, 1)))) == found


def test_kernels_of_two_sizes():
    """EfficientNet-Lite has the names of timm's MobileNetV2."""
    names = [f"blocks.{s}.0.conv_{part}.weight" for s in (1, 2) for part in ("pw", "dw", "pwl")]
    shapes = {name: (8, 8, 1, 1) for name in names}
    mobilenet = shapes | {f"blocks.{s}.0.conv_dw.weight": (8, 1, 3, 3) for s in (1, 2)}
    assert identify(tensors(mobilenet)) is None
    lite = mobilenet | {"blocks.2.0.conv_dw.weight": (8, 1, 5, 5)}
    found = identify(tensors(lite))
    assert message(found, known_families()) == (
        "its tensors have the names of EfficientNet-Lite, MnasNet or FBNet, with kernels of "
        "3 x 3 and of 5 x 5, which is not one of the supported networks, which are RepLKNet, "
        "RepVGG, MobileNetV2 and ResNet."
    )


def test_norms_without_statistics():
    """timm's resnet50_gn has the names of a ResNet, but for the running statistics."""
    shapes = {"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (8, 8, 1, 1)}
    norm = {"bn1.weight": (8,), "bn1.bias": (8,)}
    statistics = {"bn1.running_mean": (8,), "bn1.running_var": (8,)}
    assert identify(tensors(shapes | norm)) == (
        "a ResNet with group norm, or saved without its running statistics"
    )
    other = {f"stage0.rbr_dense.bn.{leaf}": (8,) for leaf in ("weight", "bias")}
    assert identify(tensors(other)).startswith("a network with group")
    assert identify(tensors(shapes | norm | statistics)) is None
    fused = {"conv1.weight": (8, 3, 7, 7), "conv1.bias": (8,)}
    assert identify(tensors(fused)) is None


@pytest.mark.parametrize(
    ("registered", "structures"),
    [
        ("replknet_31b", list(Structure)),
        ("repvgg_d2se", list(Structure)),
        ("mobilenet_v2", [Structure.TRAINING, Structure.FUSED_BRANCHES]),
        ("resnet_50", [Structure.TRAINING, Structure.FUSED_BRANCHES]),
    ],
)
def test_supported_networks_are_no_others(registered, structures):
    """In the official names of every structure, and in timm's."""
    model = create_model(miniature(ARCHITECTURES[registered]))
    for structure in structures:
        shapes = {
            key: torch_names.torch_shape(leaf.shape)
            for key, (_, leaf) in places_of(model, structure).items()
        }
        assert identify(tensors(shapes)) is None
    if registered != "replknet_31b":
        official = dict.fromkeys(places_of(model, Structure.TRAINING))
        timm = family_of(model).timm_names(official, model.architecture)
        assert identify_with_prefix(timm) is None
