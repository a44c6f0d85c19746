"""`create_segmenter`: names, defaults, and what it refuses; and the networks of the papers."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import create_model, create_segmenter, list_segmenters
from replk_jax.models.layers import ConvNorm
from replk_jax.models.variables import abstract_image, abstract_variables, by_path
from replk_jax.reparam import merge_branches
from replk_jax.segmentation.deeplab import DeepLabV3PlusHead
from replk_jax.segmentation.registry import find_segmenter
from replk_jax.segmentation.table import SEGMENTERS
from replk_jax.segmentation.upernet import UPerHead
from replk_jax.torch_import import names
from tests import reference_data
from tests.downstream import counts as counts_of
from tests.downstream import fused
from tests.helpers import TINY
from tests.segmentation import golden

MANIFESTS = {
    "ade20k_31b": ("upernet_replknet_31b_ade20k",),
    "ade20k_31l": ("upernet_replknet_31l_ade20k",),
    "ade20k_xl": ("upernet_replknet_xl_ade20k",),
    "cityscapes_31b": ("upernet_replknet_31b_cityscapes",),
    "psp_31b_ade20k": ("pspnet", "replknet_31b", 150),
    "deeplabv3plus_31b_ade20k": ("deeplabv3plus", "replknet_31b", 150),
}
# The configurations in counts.json.
COUNTED = {
    "RepLKNet-31B_1Kpretrain_upernet_80k_cityscapes_769.py": "upernet_replknet_31b_cityscapes",
    "RepLKNet-31B_1Kpretrain_upernet_160k_ade20k_512.py": "upernet_replknet_31b_ade20k",
    "RepLKNet-31B_22Kpretrain_upernet_160k_ade20k_640.py": "upernet_replknet_31b_ade20k",
    "RepLKNet-31L_22Kpretrain_upernet_160k_ade20k_640.py": "upernet_replknet_31l_ade20k",
    "RepLKNet-XL_MegData73M_upernet_160k_ade20k_640.py": "upernet_replknet_xl_ade20k",
}


@reference_data.required
@pytest.mark.parametrize("file", MANIFESTS)
def test_trees_are_those_of_mmsegmentation(file):
    """Every key and shape, by the rule of names alone."""
    model = create_segmenter(*MANIFESTS[file])
    found = names.by_key(abstract_variables(model), str)
    shapes = {key: names.torch_shape(leaf.shape) for key, (_, leaf) in found.items()}
    assert shapes == golden.manifest(file)


def numbers(variables):
    """Of the parameters, with and without the auxiliary head."""
    params = variables["params"]
    everything = sum(leaf.size for leaf in jax.tree.leaves(params))
    return everything, everything - sum(
        leaf.size for leaf in jax.tree.leaves(params["auxiliary_head"])
    )


# The others differ from these in size alone.
@reference_data.required
@pytest.mark.parametrize(
    "config",
    [
        config
        if re.search("XL|31B_1K.*ade20k", config)
        else pytest.param(config, marks=pytest.mark.exhaustive)
        for config in COUNTED
    ],
)
def test_published_counts(config):
    """To the digit: parameters of all three forms, and FLOPs by the rule of the publication."""
    row = counts_of("segmentation", config)
    model = create_segmenter(COUNTED[config])
    counts = replk_jax.summary(model, tuple(row["input_height_width"]))

    form = row["merged_and_fused"]
    flops = form["conv_multiply_adds"] + form["bias_additions"] + form["relu_elements"]
    assert counts.mmsegmentation_flops == flops
    assert round(flops / 1e9, 3) == row["rule_that_matches_most_rows"]["flops_G"]
    assert counts.relu_elements == form["relu_elements"]
    assert counts.merged.convolution == form["conv_multiply_adds"]
    assert counts.training.parameters == row["train"]["params"]
    auxiliary = counts.parts[-1]
    assert auxiliary.name == "auxiliary_head"
    without = counts.training.parameters - auxiliary.training.parameters
    assert without == row["train"]["params_without_aux"]

    variables = abstract_variables(model)
    merged = jax.eval_shape(merge_branches, variables)
    backbone = {"backbone": fused(merged["params"]["backbone"])}
    forms = {
        "train": variables,
        "merged": merged,
        "merged_and_fused": {"params": merged["params"] | backbone},
    }
    for name, tree in forms.items():
        expected = row[name]["params"], row[name]["params_without_aux"]
        assert numbers(tree) == expected, name


@pytest.mark.exhaustive
@reference_data.required
def test_multiply_adds_of_other_heads():
    """At 512 x 2048, in the README of the reference data: 337.1G and 378.8G."""
    for file, parameters, giga in (
        ("psp_31b_ade20k", 96_390_828, 337.1),
        ("deeplabv3plus_31b_ade20k", 95_159_580, 378.8),
    ):
        counts = replk_jax.summary(create_segmenter(*MANIFESTS[file]), (512, 2048))
        assert counts.training.parameters == parameters
        training = counts.training.convolution - counts.parts[-1].training.convolution
        assert round(training / 1e9, 1) == giga


@pytest.mark.parametrize("name", SEGMENTERS)
def test_networks_of_papers(name):
    row, model = SEGMENTERS[name], create_segmenter(name)
    assert model.num_classes == row.num_classes == (150 if "ade20k" in name else 19)
    assert model.backbone.architecture == create_model(row.backbone).architecture
    assert name.startswith(f"{row.head}_{row.backbone}_")
    is_upernet = row.head == "upernet"
    assert model.stage_strides[-1] == (32 if is_upernet else 8)
    assert model.backbone.contract_dilation is is_upernet
    assert model.backbone.out_indices == ((1, 2, 4, 6) if "mobilenet" in name else (0, 1, 2, 3))
    assert model.align_corners is ("pspnet" in name or name == "upernet_replknet_31b_cityscapes")
    assert model.decode_head.channels == 512
    auxiliary = model.auxiliary_head
    assert (auxiliary.channels, auxiliary.in_index, auxiliary.num_convs) == (256, -2, 1)


def test_of_pyramids_and_norms():
    """What distinguishes single networks."""
    assert create_segmenter("pspnet_repvgg_b1g2_cityscapes").decode_head.pool_channels == 512
    assert create_segmenter("pspnet_repvgg_b2_fast_cityscapes").decode_head.pool_channels == 640
    for name in list_segmenters("upernet*"):
        normed = create_segmenter(name).backbone.norm_intermediate_features
        assert normed is (name == "upernet_replknet_xl_ade20k")


def convolutions(model, kernel_sizes):
    """Name, stride and dilation of every convolution of these sizes in the backbone, in order."""
    found = []

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, ConvNorm) and module.kernel_size in kernel_sizes:
            path = "/".join(module.path)
            if path.startswith("backbone"):
                found.append((path, module.stride, module.dilation))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), abstract_image(model, (64, 64)))
    return found


@pytest.mark.parametrize("fast", ["", "fast_"])
def test_dilation_of_repvgg(fast):
    """Every 3 x 3 layer of the last two stages, or the last five alone; 1 x 1 ones have none."""
    model = create_segmenter(f"pspnet_repvgg_b1g2_{fast}cityscapes")
    found = convolutions(model, (3,))
    assert [stride for _, stride, _ in found] == [2] + [2, 1, 1, 1] + [2] + [1] * (5 + 16 + 1)
    dilations = [dilation for _, _, dilation in found]
    plain = 1 + 4 + 6 + (12 if fast else 0)
    assert dilations == [1] * plain + [2] * (27 - plain) + [4]
    merged = model.clone(deploy=True)
    shapes = jax.eval_shape(merged.init, jax.random.key(0), abstract_image(model, (73, 73)))
    outputs = jax.eval_shape(
        merged.backbone.apply,
        {"params": shapes["params"]["backbone"]},
        abstract_image(model, (73, 73)),
    )
    assert [x.shape[1] for x in outputs] == [19, 10, 10, 10]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_of_mobilenet(output_stride):
    """mmsegmentation's strides 1, 2, 2, 1, 1, 1, 1 and dilations 1, 1, 1, 2, 2, 4, 4."""
    options = {"output_stride": output_stride}
    model = create_segmenter("deeplabv3plus_mobilenet_v2_9_cityscapes", backbone_options=options)
    _, *found = convolutions(model, (3, 9))
    last = {8: [2, 2, 4, 4], 16: [1, 1, 2, 2]}[output_stride]
    layers = model.backbone.architecture.layers
    expected = [d for d, count in zip([1, 1, 1, *last], layers, strict=True) for _ in range(count)]
    assert [dilation for *_, dilation in found] == expected


def test_a_network_by_name_may_differ():
    model = create_segmenter(
        "UPerNet-RepLKNet-31B-Cityscapes",
        num_classes=2,
        channels=64,
        align_corners=False,
        auxiliary_channels=None,
        backbone_options={"drop_path_rate": 0.3},
        dtype=jnp.bfloat16,
    )
    assert (model.num_classes, model.decode_head.num_classes) == (2, 2)
    assert (model.decode_head.channels, model.align_corners) == (64, False)
    assert model.decode_head.align_corners is False
    assert model.auxiliary_head is None
    assert model.backbone.drop_path_rate == 0.3
    assert model.decode_head.dtype == jnp.bfloat16


def test_names_match_a_pattern():
    assert list_segmenters() == [*SEGMENTERS]
    assert list_segmenters("*_xl_*") == list_segmenters("*XL*") == ["upernet_replknet_xl_ade20k"]
    assert list_segmenters("nothing") == []
    assert find_segmenter("upernet") is None


@pytest.mark.parametrize("name", ["UPerNet", "PSPNet", "DeepLabV3", "DeepLab-V3-Plus", "FCN"])
def test_heads_are_found_however_they_are_spelt(name):
    plain = name.lower().replace("-", "")
    assert create_segmenter(name, TINY, 5) == create_segmenter(plain, TINY, 5)


@pytest.mark.parametrize("name", ["upernet_replknet_31b_ade20k", "PSPNet", "fcn_resnet50"])
def test_a_segmenter_is_no_model(name):
    with pytest.raises(ValueError, match=r"a segmentation network, which .*create_segmenter"):
        create_model(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("replknet_31b", (0, 1, 2, 3)),
        ("repvgg_a0", (0, 1, 2, 3)),
        ("resnet_18", (0, 1, 2, 3)),
        ("mobilenet_v2", (1, 2, 4, 6)),
        (TINY, (0, 1)),
    ],
)
@pytest.mark.parametrize("output_stride", [None, 8])
def test_feature_maps_of_a_named_backbone(name, expected, output_stride):
    model = create_segmenter("fcn", name, 5, backbone_options={"output_stride": output_stride})
    assert model.backbone.out_indices == expected
    chosen = create_segmenter("fcn", name, 5, backbone_options={"out_indices": (0, -1)})
    assert chosen.backbone.out_indices == (0, len(chosen.stage_channels) - 1)


def test_defaults_are_those_of_mmsegmentation():
    head = create_segmenter("fcn", TINY, 5).decode_head
    assert (head.channels, head.num_convs, head.concat_input) == (512, 2, True)
    model = create_segmenter("upernet", TINY, 5, dropout_rate=0.3)
    assert (model.decode_head.pool_scales, model.decode_head.pool_channels) == ((1, 2, 3, 6), None)
    assert model.decode_head.dropout_rate == model.auxiliary_head.dropout_rate == 0.3
    assert create_segmenter("fcn", TINY, 5).decode_head.dropout_rate == 0.1
    assert create_segmenter("deeplabv3", TINY, 5).decode_head.dilations == (1, 12, 24, 36)
    assert create_segmenter("deeplabv3plus", TINY, 5).decode_head.low_level_channels == 48


def test_a_backbone_of_ones_own():
    backbone = create_model(TINY, out_indices=(0, 1), output_stride=8, drop_path_rate=0.2)
    model = create_segmenter("pspnet", backbone, 5, pool_scales=[1, 2], remat="full")
    assert model.backbone == backbone.clone(remat="full")
    assert model.decode_head.pool_scales == (1, 2)
    assert hash(model) == hash(model.clone())


ONE_MAP = create_model(TINY, out_indices=(1,))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("upernett", TINY, 5), {}, ValueError, "'upernett'. Did you mean 'upernet'"),
        (("replknet_31b", None, 5), {}, ValueError, "Decode heads are upernet, pspnet, deeplabv3"),
        (
            ("upernet_replknet_31b_ade", None, 5), {}, ValueError,
            "Did you mean 'upernet_replknet_31b_ade20k'",
        ),
        (("upernet", TINY), {}, TypeError, "needs num_classes"),
        (("upernet",), {"num_classes": 5}, TypeError, "needs a backbone"),
        (
            ("upernet_replknet_31b_ade20k", "replknet_31l"), {}, TypeError,
            "upernet_replknet_31b_ade20k has the backbone replknet_31b: leave out backbone",
        ),
        (("upernet", TINY, 5), {"dilations": (1, 2)}, TypeError, "Unknown field dilations. UPer"),
        (
            ("fcn", TINY, 5), {"output_stride": 8}, TypeError,
            "Unknown field output_stride.*go into backbone_options",
        ),
        (("fcn", "replknet_99", 5), {}, ValueError, "Unknown model 'replknet_99'"),
        (
            ("fcn", TINY, 5), {"backbone_options": {"depth": 3}}, TypeError,
            "Unknown field depth. RepLKNet takes",
        ),
        (
            ("fcn", TINY, 5), {"backbone_options": {"dtype": jnp.bfloat16}}, TypeError,
            "dtype of the backbone follows the network",
        ),
        (
            ("fcn", ONE_MAP, 5), {"backbone_options": {"output_stride": 8}}, TypeError,
            "build this RepLKNet with output_stride",
        ),
        (
            ("fcn", TINY, 5), {"backbone_options": {"output_stride": 5}}, ValueError,
            "output_stride must be 4, 8, 16, 32 or None; got 5",
        ),
        (
            ("fcn", TINY, 5), {"backbone_options": {"contract_dilation": 0}}, ValueError,
            "contract_dilation must be True or False",
        ),
        (
            ("fcn", create_model(TINY), 5), {}, ValueError,
            "needs the feature maps of its backbone.*out_indices",
        ),
        (
            ("fcn", create_model(TINY, out_indices=(1, 0)), 5), {}, ValueError,
            r"ascending order; got \(1, 0\)",
        ),
        (("fcn", 3, 5), {}, TypeError, "takes a name or an architecture; got 3"),
        (
            ("upernet", ONE_MAP, 5), {"auxiliary_channels": None}, ValueError,
            "UPerHead needs at least 2 feature maps; the backbone returns 1",
        ),
        (
            ("deeplabv3plus", ONE_MAP, 5), {"auxiliary_channels": None}, ValueError,
            "needs two feature maps.*low_level_channels=None",
        ),
        (("pspnet", ONE_MAP, 5), {}, ValueError, "in_index=-2 of an FCNHead is none of the 1"),
        (("fcn", TINY, 5), {"auxiliary_index": 2}, ValueError, "in_index=2 .* none of the 2"),
        (("fcn", TINY, 5), {"auxiliary_channels": 0}, ValueError, "channels of a FCNHead"),
        (("upernet", TINY, 5), {"pool_scales": ()}, ValueError, r"pool_scales .* cannot be \(\)"),
        (("pspnet", TINY, 5), {"pool_scales": (1, 0)}, ValueError, "pool_scales of a PSPHead"),
        (("pspnet", TINY, 5), {"pool_scales": 6}, ValueError, "pool_scales .* cannot be 6"),
        (("deeplabv3", TINY, 5), {"dilations": (1, -2)}, ValueError, "dilations .* cannot be"),
        (("deeplabv3", TINY, 5), {"dilations": (1, 2.5)}, ValueError, "dilations .* cannot be"),
        (("fcn", TINY, 5), {"kernel_size": 2}, ValueError, "kernel_size must be odd"),
        (("fcn", TINY, 5), {"num_convs": -1}, ValueError, "num_convs of a FCNHead cannot be -1"),
        (("fcn", TINY, 5), {"dropout_rate": 1.0}, ValueError, r"dropout_rate must be in \[0, 1\)"),
        (("fcn", TINY, 5), {"align_corners": 1}, ValueError, "align_corners must be True or False"),
        (("fcn", TINY, 0), {}, ValueError, "needs num_classes"),
        (("fcn", TINY, -3), {}, ValueError, "num_classes must be positive"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        create_segmenter(*arguments, **options)


def test_dilated_layers_of_repvgg():
    for wrong in (0, -1, 29, 2.5):
        with pytest.raises(ValueError, match="dilated_layers must be None or 1 to 28"):
            create_model("repvgg_b2", dilated_layers=wrong).check_fields()


HEADS = {
    "upernet": UPerHead(channels=64, num_classes=100),
    "deeplabv3plus": DeepLabV3PlusHead(channels=64, num_classes=100),
}
KERNELS = {
    "upernet": ("lateral_convs_0/conv", "fpn_convs_0/conv", "psp_modules_3_1/conv"),
    "deeplabv3plus": (
        "aspp_modules_1/depthwise_conv/conv",
        "aspp_modules_1/pointwise_conv/conv",
        "c1_bottleneck/conv",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_initialisation(name):
    """Normal: variance 2 / (output channels x kernel area), also of depthwise kernels; the
    classifier's deviation is 0.01. The standard errors of these estimates are below 2 %."""
    maps = [jnp.zeros((2, size, size, 256)) for size in (4, 2)]
    init = jax.jit(HEADS[name].init)
    params = by_path(init(jax.random.key(0), maps)["params"])
    np.testing.assert_allclose(params["conv_seg/kernel"].std(), 0.01, rtol=0.05)
    for path in KERNELS[name]:
        kernel = np.asarray(params[f"{path}/kernel"])
        rows, columns, _, features = kernel.shape
        expected = np.sqrt(2 / (features * rows * columns))
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.06)
        assert np.abs(kernel).max() > 2.5 * expected  # not uniform
    assert not any(value.any() for path, value in params.items() if path.endswith("bias"))


def test_the_backbone_starts_as_it_does_alone():
    """PyTorch's uniform initialisation; a merged head starts with biases of 0."""
    model = create_segmenter("fcn", TINY, 5, channels=8, deploy=True)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert not params["decode_head"]["convs_0"]["conv"]["bias"].any()
    stem = params["backbone"]["stem_0"]["conv"]
    assert stem["bias"].all()
    assert np.abs(stem["kernel"]).max() <= 1 / np.sqrt(27)
